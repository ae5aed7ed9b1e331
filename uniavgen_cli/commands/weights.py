"""`uniavgen weights`: which weights are installed, and where."""

from typing import Annotated, Any

import typer

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import WeightsError

app = typer.Typer(help="The weights that are installed, and where.", rich_markup_mode=None)


@app.command("list")
def list_weights(json: o.JsonOption = False) -> None:
    """Say for each model whether its weights are installed, how large they are, and their hash.

    \b
    Examples:
      uniavgen weights list
      uniavgen weights list --json
    """
    from uniavgen_cli.config import load_preset, preset_names, weights_dir, weights_folder
    from uniavgen_cli.engine.provenance import weights_files, weights_sha256

    rows: list[dict[str, Any]] = []
    for preset in (load_preset(name) for name in preset_names()):
        if preset.train is not None:
            continue  # a training recipe uses its parent's weights
        try:
            folder = weights_folder(preset)
        except WeightsError:
            rows.append(
                {"preset": preset.name, "installed": False, "path": str(weights_dir() / preset.weights)}
            )
            continue
        size = sum(file.stat().st_size for file in weights_files(folder))
        sha256 = weights_sha256(folder)
        rows.append(
            {"preset": preset.name, "installed": True, "path": str(folder), "bytes": size, "sha256": sha256}
        )
    if json:
        _output.data_json({"weights": rows})
        return
    _output.table(
        [
            (row["preset"], f"{row['bytes'] / 2**20:.1f} MiB, {row['sha256'][:12]}, {row['path']}")
            if row["installed"]
            else (row["preset"], f"not installed (would be in {row['path']})")
            for row in rows
        ]
    )


@app.command("path")
def path(
    name: Annotated[
        str, o.Argument(help="A preset's name, or a YAML file.", metavar="NAME")
    ] = o.DEFAULT_PRESET,
) -> None:
    """Print the folder a preset's weights are in.

    \b
    Examples:
      uniavgen weights path
      uniavgen weights path nano
    """
    from uniavgen_cli.config import load_preset, weights_folder

    _output.data(str(weights_folder(load_preset(name))))
