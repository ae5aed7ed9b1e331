"""`uniavgen rerun`: a clip made again from its own metadata."""

from pathlib import Path
from typing import Annotated

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands._clip import produce
from uniavgen_cli.errors import InputError


def rerun(
    file: Annotated[Path, o.Argument(help="A clip that uniavgen made.", metavar="FILE")],
    output: o.OutputOption = None,
    overwrite: o.OverwriteOption = False,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Make a clip again: on the same machine and versions, the same file byte for byte.

    The files it was made from must still be there and unchanged; they are looked for under their old names
    and beside FILE.

    \b
    Examples:
      uniavgen rerun outputs/generate-hello.mp4
      uniavgen rerun outputs/generate-hello.mp4 -o again.mp4
    """
    from uniavgen_cli.engine.provenance import from_tags, remake
    from uniavgen_cli.media.limits import lifted
    from uniavgen_cli.media.video import read_metadata

    with lifted():
        made = from_tags(read_metadata(file))
    if made is None:
        raise InputError(
            f"{str(file)!r} does not say how it was made",
            "it is not by uniavgen, or its metadata was taken off",
        )
    request, preset = remake(made, file)
    common = o.Common(
        output=output,
        overwrite=overwrite,
        preset=preset.name,
        seed=request.seed,
        steps=request.steps,
        size=None,
        takes=1,
        attention=None,
        json=json,
        quiet=quiet,
    )
    produce(common, request, preset, made)
