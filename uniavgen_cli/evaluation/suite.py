"""Nano's suite: clips of unseen people, sentences and voices, measured part by part; a cut run goes on."""

import json
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uniavgen_cli import __version__
from uniavgen_cli.config import Preset, weights_folder
from uniavgen_cli.engine.weights import weights_sha256
from uniavgen_cli.errors import OutputError, UsageError
from uniavgen_cli.evaluation import cases, figures, plots, report
from uniavgen_cli.evaluation.figures import Row
from uniavgen_cli.evaluation.instruments import INSTRUMENTS, Instruments
from uniavgen_cli.evaluation.parts import PARTS, Bench
from uniavgen_cli.evaluation.photo import measure_photo, photographs

SHEETS = 6  # clips of each part that are kept and shown
Progress = Callable[[str, int, int], None]


@dataclass(kw_only=True)
class Suite:
    """A run of the suite: what it is of, and the rows so far, of each part by the number of the clip.

    With a `path`, a page, the rows are kept beside it (.json) after each clip, and what can be looked at in a
    folder beside it (-clips); another call with the same path, weights and seed goes on.
    """

    preset: Preset
    seed: int
    path: Path | None
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)

    @property
    def state_path(self) -> Path | None:
        return self.path.with_suffix(".json") if self.path else None

    def sheet(self, part: str, index: int) -> Path | None:
        """Where the sheet of a clip goes; None for those of which none is kept."""
        if self.path is None or index >= SHEETS:
            return None
        folder = self.path.with_name(f"{self.path.stem}-clips")
        folder.mkdir(exist_ok=True)
        return folder / f"{part}-{index:03}.png"

    def conditions(self) -> dict[str, Any]:
        """What must be the same for a run to go on."""
        return {
            "uniavgen": __version__,
            "preset": self.preset.model_dump(mode="json"),
            "weights_sha256": weights_sha256(weights_folder(self.preset)),
            "seed": self.seed,
        }

    def listed(self) -> dict[str, list[Row]]:
        """The rows of each part in order."""
        return {part: [rows[i] for i in sorted(rows, key=int)] for part, rows in self.rows.items()}

    def as_json(self) -> dict[str, Any]:
        cuda = torch.cuda.is_available()
        return {
            **self.conditions(),
            "hardware": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "figures": figures.summary(self.listed()),
            "rows": self.rows,
        }

    def keep(self) -> None:
        """Write the rows so far."""
        if self.state_path is None:
            return
        beside = self.state_path.with_suffix(".json.part")
        beside.write_text(json.dumps(self.as_json(), ensure_ascii=False), encoding="utf-8")
        beside.replace(self.state_path)

    def go_on(self, overwrite: bool) -> None:
        """Take over the rows that a run of the same conditions left. OutputError for one of others."""
        if self.state_path is None or not self.state_path.exists():
            return
        if overwrite:
            return
        try:
            left = json.loads(self.state_path.read_text(encoding="utf-8"))
            same = all(left.get(key) == value for key, value in self.conditions().items())
        except (OSError, ValueError, AttributeError):
            same, left = False, {}
        if not same:
            raise OutputError(
                f"{self.state_path} is of other weights, another preset or seed",
                "give another name with -o, or --overwrite",
            )
        self.rows = left["rows"]


def chosen_parts(names: str | None, photos: Path | None) -> list[str]:
    """The parts that "animate,dub" names, by default all. Raises UsageError for one there is not."""
    known = [*PARTS, *(["photo"] if photos else [])]
    if names is None:
        return known
    asked = [name.strip() for name in names.split(",") if name.strip()]
    for name in asked:
        if name == "photo" and photos is None:
            raise UsageError("the part photo needs photographs", "name a folder of them with --photos")
        if name not in known:
            raise UsageError(
                f"the suite has no part {name!r}", f"its parts are {', '.join([*PARTS, 'photo'])}"
            )
    return list(dict.fromkeys(asked))


def run(
    suite: Suite,
    instruments: Instruments,
    *,
    parts: Sequence[str],
    count: int,
    photos: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> None:
    """Measure `count` clips in each of the parts, clip by clip: a run cut short tells of all parts."""
    bench = Bench(preset=suite.preset, **{name: getattr(instruments, name) for name in INSTRUMENTS})
    pictures = photographs(photos) if photos is not None and "photo" in parts else []
    for part in parts:
        suite.rows.setdefault(part, {})
    total = count * len(parts)
    done = sum(str(index) in suite.rows[part] for part in parts for index in range(count))
    progress("measuring", done, total)
    for case in cases.cases(suite.preset, suite.seed, count):
        for part in parts:
            if str(case.index) in suite.rows[part]:
                continue
            sheet = suite.sheet(part, case.index)
            if part == "photo":
                row = measure_photo(bench, case, pictures[case.index % len(pictures)], sheet)
            else:
                row = PARTS[part](bench, case, sheet)
            suite.rows[part][str(case.index)] = row
            suite.keep()
            done += 1
            progress("measuring", done, total)


def body(suite: Suite) -> Iterable[str]:
    """The suite's page: the table, and of each part what its first clips look like."""
    found = figures.summary(suite.listed())
    yield (
        f'<p class="note">Preset {suite.preset.name}, seed {suite.seed}, weights '
        f"{suite.conditions()['weights_sha256'][:12]}. Every figure stands beside the score that the drawn "
        "truth gets from the same instrument, and beside a control that should fail.</p>"
    )
    yield report.table(figures.HEAD, figures.table(found))
    for part, rows in suite.rows.items():
        yield f"<h2>{part}</h2>"
        for index in sorted(rows, key=int)[:SHEETS]:
            yield from _shown(suite, part, int(index), rows[index])


def _shown(suite: Suite, part: str, index: int, row: Mapping[str, Any]) -> Iterable[str]:
    sheet = suite.sheet(part, index)
    if sheet is not None:
        for path in sorted(sheet.parent.glob(f"{sheet.stem}*.png")):
            yield report.figure(plots.read_picture(path), f"{part} {index}: {path.stem}")
    if curves := row.get("curves"):
        arrays = {name: np.array(curve) for name, curve in curves.items()}
        seconds = len(next(iter(arrays.values()))) / suite.preset.clip.fps
        yield plots.curves_svg(arrays, seconds)
    told = [
        (name, row[name])
        for name in ("caption", "text", "heard", "emotion", "seen_as", "heard_as", "photo")
        if name in row
    ]
    if told:
        yield report.table(("", ""), [(name.replace("_", " "), str(value)) for name, value in told])
