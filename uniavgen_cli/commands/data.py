"""`uniavgen data`: a look at what nano is taught."""

import random
from pathlib import Path
from typing import Annotated

import typer

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import OutputError

app = typer.Typer(rich_markup_mode=None)


@app.callback()
def data() -> None:
    """A look at the drawn, speaking avatars that nano is taught."""


@app.command("preview")
def preview(
    output: Annotated[
        Path,
        o.Option("--output", "-o", help="The folder to write to; made when it is missing.", metavar="FOLDER"),
    ] = Path("outputs/data-preview"),
    count: Annotated[int, o.Option("--count", help="Avatars on the contact sheet.", min=1, max=400)] = 35,
    seed: o.SeedOption = None,
    overwrite: Annotated[
        bool, o.Option("--overwrite", help="Write into a folder that holds something.")
    ] = False,
    json: o.JsonOption = False,
) -> None:
    """Write a contact sheet of avatars and a clip of one speaking, as training sees and hears them.

    \b
    Examples:
      uniavgen data preview
      uniavgen data preview --seed 7 --count 60 -o avatars
    """
    if output.is_dir() and any(output.iterdir()) and not overwrite:
        raise OutputError(f"the folder {output} holds something", "add --overwrite, or name another with -o")
    from uniavgen_cli.data.preview import preview as write

    seed = seed if seed is not None else random.SystemRandom().randrange(2**31)
    paths = write(output, count, seed)
    if json:
        _output.data_json({"paths": [str(path) for path in paths], "seed": seed})
        return
    for path in paths:
        _output.data(str(path))
    _output.note(f"seed {seed}")
