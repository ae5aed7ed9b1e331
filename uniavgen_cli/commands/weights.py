"""`uniavgen weights`: which weights there are, where they lie, and how they get there and away."""

from pathlib import Path
from typing import Annotated, Any

import typer

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import Interrupted, UsageError, WeightsError

app = typer.Typer(help="The weights there are, where they lie, and how to get them.", rich_markup_mode=None)

NameArgument = Annotated[
    str, o.Argument(help="A set of weights, as `weights list` names it, or a preset.", metavar="NAME")
]


@app.command("list")
def list_weights(json: o.JsonOption = False) -> None:
    """Name each set of weights, whether it is installed, and under which licence it stands.

    \b
    Examples:
      uniavgen weights list
      uniavgen weights list --json
    """
    from uniavgen_cli.config import DEFAULT_PRESET, load_preset, preset_names
    from uniavgen_cli.engine import weights

    presets: dict[str, list[str]] = {}
    for preset in (load_preset(name) for name in preset_names()):
        if preset.train is None:  # a training recipe uses its parent's weights
            presets.setdefault(preset.weights, []).append(preset.name)
    known = weights.registry()
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys([DEFAULT_PRESET, *known, *presets, *weights.installed_sets()]):
        folder, entry = weights.set_folder(name), known.get(name)
        row = {"name": name, "presets": presets.get(name, []), "path": str(folder), "installed": False}
        row |= {"licence": entry.licence, "notice": entry.notice} if entry else {}
        if files := weights.weights_files(folder):
            lock = weights.read_lock(folder)
            row |= {
                "installed": True,
                "bytes": sum(
                    file.stat().st_size
                    for file in ([folder / path for path in lock.files] if lock else files)
                    if file.is_file()
                ),
                "sha256": weights.weights_sha256(folder),
                "origins": {k: v.model_dump() for k, v in lock.origins.items()} if lock else {},
            }
        rows.append(row)
    if json:
        _output.data_json({"weights": rows})
        return
    _output.table(
        [
            (row["name"], f"{row['bytes'] / 2**20:.1f} MiB, {row['sha256'][:12]}, {row['path']}")
            if row["installed"]
            else (row["name"], f"not installed; {weights.how_to_get(row['name'])}")
            for row in rows
        ]
    )
    for name, entry in known.items():
        _output.data(f"{name}: {entry.licence}. {entry.notice}")


@app.command("pull")
def pull(
    name: NameArgument,
    repo: Annotated[
        list[str] | None,
        o.Option(
            "--repo", help="Another repository in place of the first one, or OLD=NEW.", metavar="OWNER/NAME"
        ),
    ] = None,
    revision: Annotated[
        str | None, o.Option("--revision", help="Branch, tag or commit of the first one.", metavar="REV")
    ] = None,
    quiet: o.QuietOption = False,
) -> None:
    """Fetch a set of weights from the hub, or what is missing of it; HF_TOKEN, HF_ENDPOINT and HF_HOME count.

    \b
    Examples:
      uniavgen weights pull uniavgen
      uniavgen weights pull uniavgen --revision main
    """
    from uniavgen_cli.engine import hub, weights

    name = weights.set_name(name)
    entry = weights.registry().get(name)
    if entry is not None:
        _output.note(f"{name}: {entry.licence}. {entry.notice}")
    first = entry.sources[0].repo if entry and entry.sources else ""
    pairs = (text.partition("=") for text in repo or ())
    repos = {(old if equals else first): (new if equals else old) for old, equals, new in pairs}
    with _output.byte_progress(quiet=quiet) as progress:
        pulled = hub.pull(name, repos=repos, revision=revision, progress=progress)
    if not quiet:
        came = f"{pulled.fetched} fetched" if pulled.fetched else "nothing to fetch"
        _output.note(f"{pulled.files} files, {pulled.bytes / 1e9:.2f} GB, {came}")
    _output.data(str(pulled.folder))


@app.command("verify")
def verify(name: NameArgument = o.DEFAULT_PRESET, quiet: o.QuietOption = False) -> None:
    """Check every file of an installed set against the checksums it was pulled or added with.

    \b
    Examples:
      uniavgen weights verify uniavgen
      uniavgen weights verify nano
    """
    from uniavgen_cli.engine import weights

    name = weights.set_name(name)
    with _output.byte_progress(quiet=quiet) as progress:
        files, locked = weights.verify(name, progress)
    how = "as they were" if locked else "whole; they came without checksums to compare with"
    _output.data(f"{name}: {files} files, {how}")


@app.command("add")
def add(
    path: Annotated[Path, o.Argument(help="The folder that holds the files.", metavar="FOLDER")],
    name: Annotated[str, o.Option("--name", help="What to call the set.", metavar="NAME")] = "uniavgen",
    quiet: o.QuietOption = False,
) -> None:
    """Use files that are on the disk already: they are linked, neither copied nor changed.

    \b
    Examples:
      uniavgen weights add ~/UniAVGen
      uniavgen weights add ~/UniAVGen-tuned --name tuned
    """
    from uniavgen_cli.engine import weights

    with _output.byte_progress(quiet=quiet) as progress:
        files = weights.add(path, name, progress)
    if not quiet:
        _output.note(f"{files} files linked from {path}")
    _output.data(str(weights.set_folder(name)))


@app.command("remove")
def remove(
    name: NameArgument,
    yes: Annotated[bool, o.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete an installed set, and what a cut pull left of it; linked files stay where they are.

    \b
    Examples:
      uniavgen weights remove uniavgen
      uniavgen weights remove uniavgen --yes
    """
    from uniavgen_cli.engine import weights

    name = weights.set_name(name)
    folder = weights.set_folder(name)
    if not yes:
        if not _output.is_terminal():
            raise UsageError(f"nobody is there to be asked about {folder}", "add --yes to delete it")
        if not typer.confirm(f"Delete {folder} ({weights.occupied_bytes(folder) / 1e9:.2f} GB)?", err=True):
            raise Interrupted(f"{name} stays")
    freed = weights.remove(name)
    _output.data(f"{folder} deleted, {freed / 1e9:.2f} GB freed")


@app.command("path")
def path(
    name: Annotated[
        str, o.Argument(help="A preset's name, a YAML file, or a set of weights.", metavar="NAME")
    ] = o.DEFAULT_PRESET,
) -> None:
    """Print the folder a preset's weights are in.

    \b
    Examples:
      uniavgen weights path
      uniavgen weights path nano
    """
    from uniavgen_cli.config import load_preset, preset_names, weights_folder
    from uniavgen_cli.engine import weights

    if name in preset_names() or "." in name:
        _output.data(str(weights_folder(load_preset(name))))
        return
    folder = weights.set_folder(weights.set_name(name))
    if not folder.is_dir():
        raise WeightsError(f"the weights {name} are not installed", weights.how_to_get(name))
    _output.data(str(folder))
