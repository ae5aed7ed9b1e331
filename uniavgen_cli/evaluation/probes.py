"""What all probes have in common: how they learn, and how they are kept."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Probe = TypeVar("Probe", bound=nn.Module)
Report = Callable[[int, float], None]


def unheard(step: int, loss: float) -> None:
    """A report that nobody reads."""


def taught(
    build: Callable[[], Probe],
    loss: Callable[[Probe, np.random.Generator], Tensor],
    *,
    steps: int,
    seeds: Sequence[int],
    lr: float = 2e-3,
    warmup: int = 50,
    weight_decay: float = 0.05,
    report: Report = unheard,
) -> Probe:
    """What `build` gives, trained for `steps` on the loss of batches that follow from `seeds` and the step.

    AdamW with a linear warm-up, and a rate that falls to nothing; the first of the seeds is the weights'.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seeds[0])
        probe = build()
        optimizer = torch.optim.AdamW(probe.parameters(), lr=lr, weight_decay=weight_decay)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1.0, (step + 1) / warmup) * (1 - step / steps) ** 0.7
            value = loss(probe, np.random.default_rng([*seeds, step]))
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(probe.parameters(), 1.0)
            optimizer.step()
            report(step + 1, float(value.detach()))
    return probe.eval()


def kept(path: Path, build: Callable[[], Probe], train: Callable[[], Probe]) -> Probe:
    """The probe at `path`; trained and kept there first when the file is missing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        trained = train()
        beside = path.with_suffix(".tmp")
        save_file(trained.state_dict(), beside)
        beside.replace(path)  # half a probe would be taken for one
        return trained
    probe = build()
    probe.load_state_dict(load_file(path))
    return probe.eval()
