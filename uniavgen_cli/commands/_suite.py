"""The way of `uniavgen eval --suite nano`: make, measure, tell."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uniavgen_cli.commands import _output
from uniavgen_cli.errors import Interrupted

if TYPE_CHECKING:
    from uniavgen_cli.evaluation.instruments import Instruments
    from uniavgen_cli.evaluation.suite import Suite


def run_suite(
    instruments: "Instruments",
    *,
    preset: str,
    overrides: Sequence[str],
    parts: str | None,
    count: int,
    seed: int,
    photos: Path | None,
    output: Path | None,
    overwrite: bool,
    json: bool,
    quiet: bool,
) -> None:
    """Run the suite, go on where a report is there already, and report; so also when it is interrupted."""
    from uniavgen_cli.config import load_preset
    from uniavgen_cli.evaluation import suite as nano

    chosen = nano.chosen_parts(parts, photos)
    run = nano.Suite(preset=load_preset(preset, overrides), seed=seed, path=output)
    run.go_on(overwrite)
    stopped = False
    with _output.progress(quiet=quiet) as progress:
        try:
            nano.run(run, instruments, parts=chosen, count=count, photos=photos, progress=progress)
        except KeyboardInterrupt:
            stopped = True
    _report(run, json=json)
    if stopped:
        raise Interrupted("interrupted", "the same command goes on" if output else "with -o it could go on")


def _report(run: "Suite", *, json: bool) -> None:
    from uniavgen_cli.evaluation import figures, report, suite

    if run.path is not None:
        title = f"uniavgen's {run.preset.name}, measured"
        report.write_page(run.path, report.page(title, suite.body(run)), overwrite=True)
    found = figures.summary(run.listed())
    if json:
        told = {key: value for key, value in run.as_json().items() if key != "rows"}
        _output.data_json({**told, "report": str(run.path) if run.path else None})
        return
    _output.data(_output_table(figures.HEAD, figures.table(found)))
    if run.path is not None:
        _output.data(str(run.path))


def _output_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from uniavgen_cli.commands.eval import rendered

    return rendered(head, rows)
