"""`uniavgen dub`: a new voice track for a given video."""

from pathlib import Path
from typing import Annotated

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands._clip import make_clips, read_speech
from uniavgen_cli.errors import UsageError


def dub(
    video: Annotated[
        Path, o.Argument(help="The video whose person speaks; its picture is kept.", metavar="VIDEO")
    ],
    speech: o.SpeechOption = None,
    voice: o.VoiceOption = None,
    voice_text: o.VoiceTextOption = None,
    language: o.LanguageOption = "auto",
    subtitles: Annotated[
        Path | None,
        o.Option("--subtitles", help="A .srt or .vtt file: each line is spoken in its time.", metavar="FILE"),
    ] = None,
    keep_sound: Annotated[
        bool, o.Option("--keep-sound", help="Mix the speech over the video's own sound.")
    ] = False,
    prompt: o.PromptOption = None,
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
    """Give a video a new voice, in time with its lips.

    Without --speech or --subtitles the lips alone decide what is heard. Without --voice the voice is the
    video's own, when it has sound.

    \b
    Examples:
      uniavgen dub talk.mp4 --speech "We are closed on Sundays."
      uniavgen dub talk.mp4 --subtitles talk.srt --voice sample.wav -o dubbed.mp4
    """
    common = o.Common.of(locals())
    if voice_text is not None and voice is None:
        raise UsageError("--voice-text says what a --voice file holds, and none is given")
    make_clips(
        common,
        task="dub",
        prompt=prompt or "",
        video=video,
        speech=read_speech(speech),
        voice=voice,
        voice_text=voice_text,
        language=language,
        subtitles=subtitles,
        keep_sound=keep_sound,
        face_index=face_index,
        require_face=require_face,
    )
