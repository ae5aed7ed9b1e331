"""`uniavgen train`: one part of the model, from a preset's recipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from uniavgen_cli.training.trainer import Progress


def train(
    preset: Annotated[
        str,
        o.Option("--preset", help="A training recipe, such as nano-joint, or a YAML file.", metavar="NAME"),
    ],
    output: Annotated[
        Path | None,
        o.Option("--output", "-o", help="The folder of the run; runs/PRESET by default.", metavar="FOLDER"),
    ] = None,
    set: o.SetOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Train a part of the model from a preset's recipe. Ctrl-C saves and stops; the same command goes on.

    \b
    Examples:
      uniavgen train --preset nano-vae
      uniavgen train --preset nano-joint --set train.steps=2000 -o runs/short
    """
    from uniavgen_cli.config import load_preset, preset_names

    recipe = load_preset(preset, set or ())
    if recipe.train is None:
        recipes = ", ".join(name for name in preset_names() if load_preset(name).train is not None)
        raise UsageError(f"preset {recipe.name} has no recipe to train", f"take one of {recipes}")
    folder = output or Path("runs") / recipe.name

    from uniavgen_cli.training.stages import build_stage, training_device
    from uniavgen_cli.training.trainer import run

    with _output.progress(quiet=quiet) as progress:
        stage = build_stage(recipe, folder, progress)
    with _reports(quiet) as report:
        finished = run(stage, folder, device=training_device(recipe), report=report)
    if not finished:
        raise Interrupted(f"stopped, and saved in {folder}", "the same command goes on from there")
    if json:
        _output.data_json({"preset": recipe.name, "path": str(folder), "steps": stage.steps})
    else:
        _output.data(str(folder))


@contextmanager
def _reports(quiet: bool) -> Iterator[Any]:
    """Shows where a run stands: a bar on a terminal, else a line now and then."""
    if quiet:
        yield lambda progress: None
        return
    if not _output.is_terminal():
        yield lambda progress: _output.note(_line(progress))
        return
    with _output.bar() as show:
        yield lambda progress: show(progress.step, progress.steps, _line(progress))


def _line(progress: "Progress") -> str:
    losses = " ".join(f"{name} {value:.4f}" for name, value in progress.losses.items())
    minutes, seconds = divmod(round(progress.seconds_left), 60)
    speed = f"{progress.steps_per_s:.2f} steps/s  {minutes // 60}:{minutes % 60:02}:{seconds:02} left"
    return f"{progress.stage} {progress.step}/{progress.steps}  {losses}  {speed}"
