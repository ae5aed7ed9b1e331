"""`uniavgen generate`: a clip from words, with or without a picture and a voice."""

from pathlib import Path
from typing import Annotated

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands._clip import make_clips, read_speech
from uniavgen_cli.errors import UsageError


def generate(
    prompt: o.PromptOption = None,
    speech: o.SpeechOption = None,
    face: Annotated[
        Path | None, o.Option("--face", help="A picture of the person to show.", metavar="FILE")
    ] = None,
    voice: o.VoiceOption = None,
    voice_text: o.VoiceTextOption = None,
    language: o.LanguageOption = "auto",
    duration: o.DurationOption = None,
    output: o.OutputOption = None,
    overwrite: o.OverwriteOption = False,
    preset: o.PresetOption = o.DEFAULT_PRESET,
    seed: o.SeedOption = None,
    steps: o.StepsOption = None,
    size: o.SizeOption = None,
    takes: o.TakesOption = 1,
    best_of: o.BestOfOption = 1,
    face_index: o.FaceIndexOption = 0,
    require_face: o.RequireFaceOption = False,
    private: o.PrivateOption = False,
    unlimited: o.UnlimitedOption = False,
    lora: o.LoraOption = None,
    set: o.SetOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
    attention: o.AttentionOption = None,
) -> None:
    """Make a clip of a person saying what you typed.

    \b
    Examples:
      uniavgen generate --prompt 'A woman with red hair says "Good morning, how are you?"'
      uniavgen generate --face portrait.jpg --speech @words.txt --voice sample.wav -o hello.mp4
    """
    common = o.Common.of(locals())
    if prompt is None and speech is None and face is None:
        raise UsageError(
            "generate needs --prompt, --speech or --face", "uniavgen generate --help shows examples"
        )
    if voice_text is not None and voice is None:
        raise UsageError("--voice-text says what a --voice file holds, and none is given")
    make_clips(
        common,
        task="generate",
        prompt=prompt or "",
        speech=read_speech(speech),
        face=face,
        voice=voice,
        voice_text=voice_text,
        language=language,
        duration_s=duration,
        face_index=face_index,
        require_face=require_face,
    )
