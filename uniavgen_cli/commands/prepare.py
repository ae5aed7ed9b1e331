"""`uniavgen prepare`: people's videos to training clips."""

from pathlib import Path
from typing import Annotated

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import InputError


def prepare(
    folder: Annotated[Path, o.Argument(help="The folder of videos, of any format.", metavar="DIR")],
    output: Annotated[
        Path,
        o.Option("--output", "-o", help="The folder of clips; the same one goes on.", metavar="FOLDER"),
    ] = Path("latents"),
    transcripts: Annotated[
        Path | None,
        o.Option(
            "--transcripts",
            help="A CSV with the columns file and text; start_s, end_s, caption and emotion if you like. "
            "Without it, or for a file it doesn't name, what is said stands in a .txt beside the video.",
            metavar="FILE",
        ),
    ] = None,
    preset: o.PresetOption = o.DEFAULT_PRESET,
    unlimited: o.UnlimitedOption = False,
    set: o.SetOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Turn videos of people who speak into training clips for `uniavgen train --data`.

    A clip shows one face and has speech with its words; scenes without either, and with a scene cut in them,
    are listed in left-out.csv with the reason. What is done stays done: the same command goes on.

    \b
    Examples:
      uniavgen prepare videos -o latents
      uniavgen prepare videos --transcripts words.csv --preset uniavgen -o latents-736
    """
    from uniavgen_cli.config import load_preset, weights_folder
    from uniavgen_cli.data.prepare import find_videos
    from uniavgen_cli.data.prepared import LEFT_OUT, How
    from uniavgen_cli.media.limits import lifted

    chosen = load_preset(preset, set or ())
    find_videos(folder)
    weights_folder(chosen)

    from uniavgen_cli.codecs.load import load_picture_codec  # torch: only now that nothing else can be wrong
    from uniavgen_cli.data.prepare import prepare as write
    from uniavgen_cli.runtime import choose
    from uniavgen_cli.training.stages import codec_hash

    device = choose(chosen.runtime.device, chosen.runtime.dtype, "sdpa").device.value
    how = How.of(chosen, codec_hash(chosen))
    codec = load_picture_codec(chosen, device)
    with _output.progress(quiet=quiet) as progress, lifted(unlimited):
        made = write(folder, output, how, codec, transcripts, progress)
    if json:
        _output.data_json({"path": str(output), **vars(made), "warnings": _output.warnings_seen()})
    else:
        _output.data(str(output))
        if not quiet:
            _output.note(
                f"{made.clips} clips of {made.videos} of {made.all_videos} videos; "
                f"{made.left_out} scenes left out, see {output / LEFT_OUT}"
            )
    if not made.clips:
        what = f"no clip could be made of {made.all_videos} videos"
        raise InputError(what, f"{output / LEFT_OUT} says why")
