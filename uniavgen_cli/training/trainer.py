"""The training loop: reads top to bottom, knows nothing of what it trains.

One process, or several under torchrun: each draws its own batches, all take the mean of their gradients, the
first writes.
"""

import math
import pickle
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from uniavgen_cli.errors import WeightsError
from uniavgen_cli.runtime import choose
from uniavgen_cli.training import processes
from uniavgen_cli.training.ledger import Ledger

Batch = dict[str, Any]


@dataclass(frozen=True)
class Watch:
    """Every so many steps `look(module, step, folder)` is called, with the averaged weights in the module."""

    every: int
    look: Callable[[nn.Module, int, Path], None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What trains, on what, for how long.

    `batch(step)` draws everything from the step number, so that the same seed and step give the same batch;
    of n processes number k draws those of step * n + k. A batch may say its "task" and its timesteps "t".
    `loss(module, batch, step)` returns named per-sample values, each (b,) and already weighted; the loop sums
    the names and means the batch. `export(weights, folder)` writes the averaged weights for the product.
    """

    name: str
    module: nn.Module
    batch: Callable[[int], Batch]
    loss: Callable[[nn.Module, Batch, int], dict[str, Tensor]]
    export: Callable[[dict[str, Tensor], Path], None]
    steps: int
    lr: float
    warmup: int = 100
    decay_from: float = 0.7  # share of the steps after which the rate falls to zero along a cosine
    weight_decay: float = 0.01
    muon: tuple[str, ...] = ()  # how names begin whose matrices Muon steers; AdamW steers the rest
    ema: float = 0.999  # 0 keeps no average
    clip: float = 1.0
    dtype: torch.dtype = torch.float32  # of the matrix products where the device has it; weights stay float32
    checkpoint_every_s: float = 180.0
    trained_only: bool = False  # averages, checkpoints and exports hold what trains and nothing else
    watches: tuple[Watch, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where a run stands: `losses` are means since the last report, `seconds_left` at the present speed."""

    stage: str
    step: int
    steps: int
    losses: dict[str, float]
    steps_per_s: float
    seconds_left: float


def run(
    stage: Stage,
    out: Path,
    *,
    device: torch.device | str = "cpu",
    report: Callable[[Progress], None] = lambda progress: None,
    report_every: int = 20,
) -> bool:
    """Train `stage` in the folder `out`, going on from a checkpoint there; True when it is finished.

    Ctrl-C finishes the step, saves and returns False; the same call goes on from there. A checkpoint is
    replaced whole, so a run that is killed loses at most `checkpoint_every_s` seconds. Raises
    WeightsError when the checkpoint belongs to another model.
    """
    out.mkdir(parents=True, exist_ok=True)
    module = stage.module.to(device).train()
    optimizers = _optimizers(module, stage)
    average = {name: value.detach().clone() for name, value in _kept(module, stage).items()}
    ledger = Ledger(out, device)
    step = _resume(out / "checkpoint.pt", module, optimizers, average, ledger)
    processes.wait()  # nobody writes before all have read
    device_type = torch.device(device).type
    native = choose(str(device), attention="sdpa").torch_dtype  # bfloat16 is slower where it is emulated
    dtype = stage.dtype if native == torch.bfloat16 else torch.float32
    losses_of = processes.averaging(_Losses(module, stage.loss))
    rank, count = processes.rank(), processes.count()
    saved_at = reported_at = time.monotonic()
    reported_step = step

    with _stop_flag() as stopped:
        while step < stage.steps and not processes.anyone(stopped(), device):
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = stage.lr * rate(step, stage)
            batch = {
                key: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
                for key, value in stage.batch(step * count + rank).items()
            }
            with torch.autocast(device_type, dtype=dtype, enabled=dtype != torch.float32):
                losses = losses_of(batch, step)
            total = torch.stack([value.float().mean() for value in losses.values()]).sum()
            module.zero_grad(set_to_none=True)
            total.backward()
            norm = nn.utils.clip_grad_norm_(module.parameters(), stage.clip)
            # one broken batch must not undo hours: a step whose gradient is not finite is left out
            if torch.isfinite(norm):
                for optimizer in optimizers:
                    optimizer.step()
            _follow(average, _kept(module, stage), min(stage.ema, (1 + step) / (10 + step)))
            step += 1

            ledger.add(losses, str(batch.get("task", stage.name)), batch.get("t"))
            now = time.monotonic()
            if step % report_every == 0 or step == stage.steps:
                speed = (step - reported_step) / (now - reported_at)
                means = ledger.close_row(step, speed)
                report(
                    Progress(
                        stage=stage.name,
                        step=step,
                        steps=stage.steps,
                        losses=means,
                        steps_per_s=speed,
                        seconds_left=(stage.steps - step) / speed,
                    )
                )
                reported_at, reported_step = now, step
            if rank == 0:
                for watch in stage.watches:
                    if step % watch.every == 0:
                        with _averaged(module, average):
                            watch.look(module, step, out)
            due = rank == 0 and time.monotonic() - saved_at > stage.checkpoint_every_s
            if processes.anyone(due, device):
                _save(out / "checkpoint.pt", step, _kept(module, stage), optimizers, average, ledger)
                saved_at = time.monotonic()

    finished = step >= stage.steps
    _save(out / "checkpoint.pt", step, _kept(module, stage), optimizers, average, ledger)
    if finished and rank == 0:
        stage.export(average, out)
    processes.wait()
    return finished


def rate(step: int, stage: Stage) -> float:
    """The learning rate at `step` as a share of `stage.lr`: linear warm-up, flat, cosine to 2 %."""
    warm = min(1.0, (step + 1) / max(1, stage.warmup))
    start = stage.decay_from * stage.steps
    if step <= start:
        return warm
    share = (step - start) / max(1.0, stage.steps - start)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))


def averaged_weights(out: Path) -> dict[str, Tensor]:
    """The averaged weights in the checkpoint of the folder `out`, whether its run is finished or not."""
    return torch.load(out / "checkpoint.pt", map_location="cpu", weights_only=True)["average"]


class _Losses(nn.Module):
    """A stage's loss as a module's forward, which is where several processes' gradients are hooked in."""

    def __init__(self, module: nn.Module, loss: Callable[[nn.Module, Batch, int], dict[str, Tensor]]) -> None:
        super().__init__()
        self.module = module
        self.loss = loss

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        return self.loss(self.module, batch, step)


def _kept(module: nn.Module, stage: Stage) -> dict[str, Tensor]:
    """What is averaged, saved and exported: all of the module, or what trains alone."""
    state: dict[str, Tensor] = module.state_dict()
    if stage.trained_only:
        state = {name: value for name, value in module.named_parameters() if value.requires_grad}
    return state


def _optimizers(module: nn.Module, stage: Stage) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon (Jordan et al. 2024) where the stage names matrices, with steps as large as AdamW's.

    Matrices and kernels decay; biases, gains and other vectors do not.
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    hidden = {
        name: p for name, p in trained.items() if p.ndim == 2 and len(p) > 1 and name.startswith(stage.muon)
    }
    rest = [p for name, p in trained.items() if name not in hidden]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.99), fused=True)
    ]
    if hidden:
        optimizers.append(
            torch.optim.Muon(
                hidden.values(),
                lr=stage.lr,
                weight_decay=stage.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


@torch.no_grad()
def _follow(average: dict[str, Tensor], state: dict[str, Tensor], share: float) -> None:
    floats = [name for name, value in state.items() if value.is_floating_point()]
    torch._foreach_lerp_([average[n] for n in floats], [state[n] for n in floats], 1 - share)
    for name in state.keys() - set(floats):
        average[name].copy_(state[name])


@contextmanager
def _averaged(module: nn.Module, average: dict[str, Tensor]) -> Iterator[None]:
    """Within the block the module has the averaged weights and is in eval mode."""
    own = {name: value.detach().clone() for name, value in module.state_dict().items() if name in average}
    module.load_state_dict(average, strict=False)
    module.eval()
    try:
        yield
    finally:
        module.load_state_dict(own, strict=False)
        module.train()


def _save(
    path: Path,
    step: int,
    kept: dict[str, Tensor],
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
    ledger: Ledger,
) -> None:
    """Of several processes all must call it: each has losses of its own. One writes."""
    ledgers = processes.gathered(ledger.state())
    if processes.rank() > 0:
        return
    state = {
        "step": step,
        "module": {name: value.detach() for name, value in kept.items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "average": average,
        "ledgers": ledgers,
    }
    beside = path.with_suffix(".tmp")
    torch.save(state, beside)
    beside.replace(path)


def _resume(
    path: Path,
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    average: dict[str, Tensor],
    ledger: Ledger,
) -> int:
    """The step to go on from, with everything as it stood then; 0 without a checkpoint."""
    if not path.is_file():
        ledger.resume(0, [])
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        why = str(error).splitlines()[0] if str(error) else "it is empty"
        raise WeightsError(
            f"the checkpoint {path} can't be read ({why})",
            "train into another folder with --output, or remove it to begin anew",
        ) from error
    try:
        if state["average"].keys() != average.keys():
            names = sorted(state["average"].keys() ^ average.keys())
            raise ValueError(f"{len(names)} tensors are in one of them alone, such as {names[0]}")
        module.load_state_dict({**module.state_dict(), **state["module"]})
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError) as error:
        raise WeightsError(
            f"the checkpoint {path} does not fit this model ({str(error).splitlines()[0]})",
            "train into another folder with --output, or remove it to begin anew",
        ) from error
    for name, value in state["average"].items():
        average[name].copy_(value)
    step = int(state["step"])
    ledger.resume(step, state.get("ledgers", []))
    return step


@contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """A function that turns True at the first Ctrl-C; a second one interrupts at once."""
    asked = False

    def ask(signum: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, before)
