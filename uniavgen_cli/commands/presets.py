"""`uniavgen presets`: which models there are, and every key of one."""

from typing import Annotated

import typer

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output

app = typer.Typer(help="The models there are, and every key of one.", rich_markup_mode=None)


@app.command("list")
def list_presets(json: o.JsonOption = False) -> None:
    """Name each built-in preset and what it is for.

    \b
    Examples:
      uniavgen presets list
      uniavgen presets list --json
    """
    from uniavgen_cli.config import load_preset, preset_names

    presets = [load_preset(name) for name in preset_names()]
    if json:
        _output.data_json({preset.name: preset.about for preset in presets})
    else:
        _output.table([(preset.name, preset.about) for preset in presets])


@app.command("show")
def show(
    name: Annotated[
        str, o.Argument(help="A preset's name, or a YAML file.", metavar="NAME")
    ] = o.DEFAULT_PRESET,
    set: o.SetOption = None,
    json: o.JsonOption = False,
) -> None:
    """Show every key of a preset, derived and with the --set changes applied.

    \b
    Examples:
      uniavgen presets show nano
      uniavgen presets show nano --set sampling.steps=10
    """
    from uniavgen_cli.config import load_preset

    values = load_preset(name, set or ()).model_dump(exclude_none=True)
    if json:
        _output.data_json(values)
        return
    import yaml

    _output.data(yaml.safe_dump(values, sort_keys=False, default_flow_style=None, width=110).rstrip())
