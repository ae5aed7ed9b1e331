"""The only place that prints: data on standard output, everything else on standard error."""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from uniavgen_cli.errors import UniAVGenError

ProgressCallback = Callable[[str, int, int], None]


class _Warnings(logging.Handler):
    """Shows the library's warnings as lines, and keeps them for --json."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.seen:
            self.seen.append(message)
            note(f"{record.levelname.lower()}: {message}")


_warnings = _Warnings()


def debug() -> bool:
    """Whether UNIAVGEN_DEBUG asks for tracebacks."""
    return os.environ.get("UNIAVGEN_DEBUG", "") not in ("", "0")


def show_warnings() -> None:
    """Show what the library logs from now on; once a process."""
    logger = logging.getLogger("uniavgen_cli")
    logger.propagate = False
    if _warnings not in logger.handlers:
        logger.addHandler(_warnings)
    _warnings.seen.clear()


def warnings_seen() -> list[str]:
    """The warnings shown so far."""
    return list(_warnings.seen)


def fail(error: UniAVGenError) -> None:
    """One line for an error: what; hint."""
    note("error: " + " ".join(str(error).split()))


def note(text: str) -> None:
    """A line for a person."""
    print(text, file=sys.stderr, flush=True)


def data(text: str) -> None:
    """A line of the answer itself."""
    print(text, flush=True)


def data_json(value: Any) -> None:
    """The answer as one JSON object."""
    data(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of the answer in columns; the last column is as wide as it likes."""
    columns = zip(*(row[:-1] for row in rows), strict=True)
    widths = [max(len(cell) for cell in column) for column in columns]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        data("  ".join([*cells, row[-1]]).rstrip())


def is_terminal() -> bool:
    """Whether a person is watching standard error."""
    return sys.stderr.isatty()


@contextmanager
def bar() -> Iterator[Callable[[int, int, str], None]]:
    """A function (done, total, text) that draws one bar with a text beside it."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(BarColumn(20), TextColumn("{task.description}"), console=Console(stderr=True)) as bars:
        task = bars.add_task("")
        yield lambda done, total, text: bars.update(task, completed=done, total=total, description=text)


@contextmanager
def byte_progress(*, quiet: bool) -> Iterator[ProgressCallback]:
    """A callback (file, bytes done, bytes in all) that draws one bar; silent when no terminal watches."""
    if quiet or not is_terminal():
        yield lambda file, done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (BarColumn(30), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True)) as bars:
        task = bars.add_task("")
        yield lambda file, done, total: bars.update(task, completed=done, total=total, description=file)


@contextmanager
def progress(*, quiet: bool) -> Iterator[ProgressCallback]:
    """A callback (stage, done, total) that draws a bar a stage; silent when standard error is no terminal.

    What follows a comma in the stage's name says where it is, and stands beside the same bar.
    """
    if quiet or not is_terminal():
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:>9}"), BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            name = stage.partition(",")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(stage, total=total)
            if done == 0:
                bars.reset(tasks[name], total=total)  # the next take begins its stages anew
            bars.update(tasks[name], completed=done, total=total, description=stage)

        yield show
