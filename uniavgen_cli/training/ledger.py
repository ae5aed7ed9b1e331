"""What a run's losses were: two CSV files in its folder, exact across cuts.

`losses.csv` has a row a report: step, steps a second, and NAME=MEAN of every loss. `losses-by-task.csv` tells
the same losses apart by task and by fifth of the timestep (0 clean, 1 noise).
"""

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uniavgen_cli.training import processes

BINS = 5  # of the timestep
TASK_HEADER = ["step", "task", "loss", "t_from", "t_to", "mean", "samples"]


class Ledger:
    """Sums since the last report; a checkpoint carries them, so that a cut shows in no row."""

    def __init__(self, folder: Path, device: torch.device | str) -> None:
        self.path, self.task_path = folder / "losses.csv", folder / "losses-by-task.csv"
        self.device = device
        self.totals: dict[str, Tensor] = {}
        self.steps = 0
        self.by_task: dict[str, Tensor] = {}  # "task/loss" -> (2, BINS): sums and numbers of samples

    def add(self, losses: dict[str, Tensor], task: str, t: Tensor | None) -> None:
        """One step's per-sample losses (b,), of a task, at timesteps t (b,) in 0..1 where there are any."""
        self.steps += 1
        for name, value in losses.items():
            value = value.detach().float()
            zero = torch.zeros((), device=self.device)
            self.totals[name] = self.totals.get(name, zero) + value.mean()
            if t is None:
                continue
            bins = (t * BINS).long().clamp(0, BINS - 1)
            sums = torch.zeros(2, BINS, device=self.device, dtype=torch.float64)
            sums[0].index_add_(0, bins, value.double())
            sums[1].index_add_(0, bins, torch.ones_like(value, dtype=torch.float64))
            key = f"{task}/{name}"
            self.by_task[key] = self.by_task[key] + sums if key in self.by_task else sums

    def close_row(self, step: int, speed: float) -> dict[str, float]:
        """Write what was added since the last row; returns the mean of each loss over those steps.

        Of several processes all must call it; one writes.
        """
        everyone = processes.gathered(self.state())
        totals, by_task, steps = _sum_of(everyone)
        means = {name: float(value) / steps for name, value in totals.items()}
        if processes.rank() == 0:
            row = [step, f"{speed:.3f}", *(f"{name}={mean:.5f}" for name, mean in means.items())]
            append(self.path, [row])
            append(self.task_path, list(_task_rows(step, by_task)), TASK_HEADER)
        self.totals, self.by_task, self.steps = {}, {}, 0
        return means

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "totals": {name: value.cpu() for name, value in self.totals.items()},
            "by_task": {name: value.cpu() for name, value in self.by_task.items()},
            "steps": self.steps,
        }

    def resume(self, step: int, states: list[dict[str, Any]]) -> None:
        """Go on at `step`: rows written after it are taken back, sums not yet written are known again.

        `states` are of all processes; the first takes all of them over when there are now more or fewer.
        """
        if processes.rank() == 0:
            for path in (self.path, self.task_path):
                cut_after(path, step)
        if len(states) == processes.count():
            states = [states[processes.rank()]]
        elif processes.rank() > 0:
            states = []
        totals, by_task, self.steps = _sum_of(states)
        self.totals = {name: value.to(self.device) for name, value in totals.items()}
        self.by_task = {name: value.to(self.device) for name, value in by_task.items()}


def _sum_of(states: list[dict[str, Any]]) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    totals: dict[str, Tensor] = {}
    by_task: dict[str, Tensor] = {}
    for state in states:
        for mine, theirs in ((totals, state["totals"]), (by_task, state["by_task"])):
            for name, value in theirs.items():
                mine[name] = mine[name] + value if name in mine else value
    return totals, by_task, sum(state["steps"] for state in states)


def _task_rows(step: int, by_task: dict[str, Tensor]) -> list[list[Any]]:
    rows = []
    for key in sorted(by_task):
        task, _, loss = key.partition("/")
        for number, (total, samples) in enumerate(by_task[key].T.tolist()):
            if samples:
                edges = [f"{number / BINS:.1f}", f"{(number + 1) / BINS:.1f}"]
                rows.append([step, task, loss, *edges, f"{total / samples:.5f}", int(samples)])
    return rows


def append(path: Path, rows: list[list[Any]], header: list[str] | None = None) -> None:
    """Add rows to a CSV; the header first, where there is one and the file is new."""
    if not rows:
        return
    fresh = not path.exists() or path.stat().st_size == 0
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if header is not None and fresh:
            writer.writerow(header)
        writer.writerows(rows)


def cut_after(path: Path, step: int) -> None:
    """Take back the rows of steps after `step`, and a row that a kill left half written."""
    if not path.is_file():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept = []
    for line in lines:
        first = line.partition(",")[0]
        if line.endswith("\n") and (not first.isdigit() or int(first) <= step):
            kept.append(line)
    if kept != lines:
        beside = path.with_suffix(".tmp")
        beside.write_text("".join(kept), encoding="utf-8")
        beside.replace(path)
