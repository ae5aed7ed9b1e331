"""`uniavgen continue`: a clip that goes on."""

from pathlib import Path
from typing import Annotated

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands._clip import make_clips, read_speech
from uniavgen_cli.errors import UsageError


def continue_(
    clip: Annotated[Path, o.Argument(help="The clip that goes on; its own part is kept.", metavar="CLIP")],
    speech: o.SpeechOption = None,
    prompt: o.PromptOption = None,
    voice: o.VoiceOption = None,
    voice_text: o.VoiceTextOption = None,
    language: o.LanguageOption = "auto",
    duration: Annotated[
        float | None, o.Option("--duration", help="Seconds to add to the clip.", metavar="SECONDS")
    ] = None,
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
    """Let a clip go on, with new words or as it likes.

    \b
    Examples:
      uniavgen continue hello.mp4 --speech "And this is my house."
      uniavgen continue hello.mp4 --duration 2 -n 3
    """
    common = o.Common.of(locals())
    if voice_text is not None and voice is None:
        raise UsageError("--voice-text says what a --voice file holds, and none is given")
    make_clips(
        common,
        task="continue",
        prompt=prompt or "",
        video=clip,
        speech=read_speech(speech),
        voice=voice,
        voice_text=voice_text,
        language=language,
        duration_s=duration,
        face_index=face_index,
        require_face=require_face,
    )
