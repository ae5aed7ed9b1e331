"""`uniavgen animate`: a picture moved by a given sound."""

from pathlib import Path
from typing import Annotated

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands._clip import make_clips


def animate(
    face: Annotated[Path, o.Argument(help="A picture of the person to show.", metavar="FACE")],
    sound: Annotated[Path, o.Argument(help="The speech to move to; it is kept as it is.", metavar="SOUND")],
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
    """Make a picture speak a given sound.

    The sound is kept: copied where the container can hold it, else AAC, or losslessly when -o ends in .mkv.

    \b
    Examples:
      uniavgen animate portrait.jpg speech.wav
      uniavgen animate portrait.jpg speech.wav --prompt "A man smiling" --seed 7 -o talking.mp4
    """
    make_clips(
        o.Common.of(locals()),
        task="animate",
        prompt=prompt or "",
        face=face,
        sound=sound,
        face_index=face_index,
        require_face=require_face,
    )
