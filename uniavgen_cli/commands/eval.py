"""`uniavgen eval`: clips measured, or nano's whole suite, as a table, JSON and one HTML page."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import InputError, UsageError

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wav", ".flac", ".mp3", ".m4a", ".ogg", ".opus")
CLIPS_A_TABLE = 4

logger = logging.getLogger(__name__)


def eval_(
    clips: Annotated[
        list[Path] | None,
        o.Argument(help="Clips or sounds, or folders of them.", metavar="[CLIP]...", show_default=False),
    ] = None,
    suite: Annotated[
        str | None,
        o.Option("--suite", help="Make clips and measure them against the bars: nano.", metavar="NAME"),
    ] = None,
    parts: Annotated[
        str | None,
        o.Option("--parts", help="Of the suite: some of its parts, with commas between.", metavar="NAMES"),
    ] = None,
    count: Annotated[
        int, o.Option("--clips", help="Of the suite: how many clips each part makes.", metavar="N", min=2)
    ] = 50,
    seed: Annotated[
        int, o.Option("--seed", help="Of the suite: which people and sentences.", metavar="N", min=0)
    ] = 9001,
    photos: Annotated[
        Path | None,
        o.Option("--photos", help="Of the suite: a folder of photographs to animate.", metavar="FOLDER"),
    ] = None,
    preset: o.PresetOption = o.DEFAULT_PRESET,
    set: o.SetOption = None,
    face: Annotated[
        Path | None, o.Option("--face", help="The person it should show, to hold it against.", metavar="FILE")
    ] = None,
    voice: Annotated[
        Path | None, o.Option("--voice", help="The voice it should have, likewise.", metavar="FILE")
    ] = None,
    probes: Annotated[
        Path | None,
        o.Option("--probes", help="Where nano's probes are, if not among the weights.", metavar="FOLDER"),
    ] = None,
    train_probes: Annotated[
        bool, o.Option("--train-probes", help="Train the probes that are missing first, in some minutes.")
    ] = False,
    output: Annotated[
        Path | None,
        o.Option("--output", "-o", help="Write a report too, one self-contained page.", metavar="FILE.html"),
    ] = None,
    overwrite: o.OverwriteOption = False,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Measure clips: synchrony, speech, voice, emotion, identity, seams, motion, loudness.

    What can't be measured, for want of weights or of something to hold it against, is left out and said.

    \b
    Examples:
      uniavgen eval outputs -o report.html
      uniavgen eval --suite nano --parts animate,generate --clips 10 -o suite.html
    """
    if suite is None and not clips and not train_probes:
        raise UsageError("eval needs clips, a folder of them, or --suite nano", "uniavgen eval clip.mp4")
    if suite is not None and clips:
        raise UsageError("eval takes clips or --suite, and both are given", "leave one out")
    if suite not in (None, "nano"):
        raise UsageError(f"there is no suite {suite!r}", "there is nano")
    if output is not None:
        from uniavgen_cli.media.output import check_output

        # a suite goes on with the report that is there
        check_output(output, overwrite or suite is not None, (".html", ".htm"))
    files = list(_files(clips or []))

    from uniavgen_cli.evaluation import instruments

    folder = probes or instruments.probes_folder()
    if train_probes or suite is not None:
        instruments.make_missing(folder, starting=lambda what: _note(quiet, f"training what reads {what}"))
    read = instruments.load_instruments(folder)
    if suite is not None:
        from uniavgen_cli.commands._suite import run_suite

        run_suite(
            read,
            preset=preset,
            overrides=set or [],
            parts=parts,
            count=count,
            seed=seed,
            photos=photos,
            output=output,
            overwrite=overwrite,
            json=json,
            quiet=quiet,
        )
    elif files:
        _measure_files(files, read, named=clips or [], face=face, voice=voice, output=output,
                       overwrite=overwrite, json=json, quiet=quiet)  # fmt: skip
    elif json:
        _output.data_json({"probes": str(folder)})
    else:
        _output.data(str(folder))


def _files(given: Sequence[Path]) -> Sequence[Path]:
    """The files meant: those named, and of a folder those that end as clips and sounds do."""
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not inside:
            raise InputError(f"the folder {path} holds no clip", f"clips end in {' '.join(SUFFIXES)}")
        found += inside
    return found


def _measure_files(
    files: Sequence[Path],
    instruments: Any,
    *,
    named: Sequence[Path],
    face: Path | None,
    voice: Path | None,
    output: Path | None,
    overwrite: bool,
    json: bool,
    quiet: bool,
) -> None:
    from uniavgen_cli.evaluation import report, runner
    from uniavgen_cli.media.probe import probe

    for given in (face, voice):
        if given is not None:
            probe(given)  # what can't be read is told at once
    references = runner.References(face=face, voice=voice)
    opened = []
    for path in files:  # named, one that can't be read ends the run; of a folder it is left out
        try:
            opened.append(runner.open_clip(path, references))
        except InputError as error:
            if path in named:
                raise
            logger.warning("left out: %s", error.what)
    if not opened:
        raise InputError("none of the clips can be read", "name others")
    measured = []
    with _output.progress(quiet=quiet) as progress:
        for number, clip in enumerate(opened):
            progress("measuring", number, len(opened))
            measured.append(runner.measure(clip, instruments))
        progress("measuring", len(opened), len(opened))
    if output is not None:
        title = f"Measured: {', '.join(str(path) for path in files[:3])}{' ...' * (len(files) > 3)}"
        report.write_page(output, report.page(title, report.clips_body(measured)), overwrite)
    if json:
        about = {
            metric.key: {
                "name": metric.name,
                "unit": metric.unit,
                "better": metric.better,
                "how": runner.how_measured(metric),
            }
            for metric in runner.METRICS
        }
        _output.data_json(
            {
                "clips": [clip.as_json() for clip in measured],
                "report": str(output) if output else None,
                "metrics": about,
                "warnings": _output.warnings_seen(),
            }
        )
        return
    for start in range(0, len(measured), CLIPS_A_TABLE):
        _output.data(rendered(*report.overview(measured[start : start + CLIPS_A_TABLE])))
    reasons = dict.fromkeys(reason for clip in measured for reason in clip.left_out.values())
    for reason in reasons:
        names = [m.name for m in runner.METRICS if any(c.left_out.get(m.key) == reason for c in measured)]
        _note(quiet, f"left out: {', '.join(names)}: {reason}")
    if output is not None:
        _output.data(str(output))


def rendered(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as text, as wide as the terminal and where there is none as it likes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(head):
        table.add_column(column, overflow="fold", no_wrap=number < 3)
    for row in rows:
        table.add_row(*row)
    console = Console() if sys.stdout.isatty() else Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip()


def _note(quiet: bool, text: str) -> None:
    if not quiet:
        _output.note(text)
