"""`uniavgen train`: one part of the model, from a preset's recipe."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import InputError, Interrupted, UsageError

if TYPE_CHECKING:
    from uniavgen_cli.config import Preset
    from uniavgen_cli.training.trainer import Progress

OWN_DATA = "nano-own"  # the recipe for clips of one's own


def train(
    preset: Annotated[
        str | None,
        o.Option(
            "--preset",
            help="A training recipe, such as nano-joint, or a YAML file; nano-own where --data is given.",
            metavar="NAME",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        o.Option("--data", help="A folder of clips that `uniavgen prepare` made.", metavar="FOLDER"),
    ] = None,
    lora: Annotated[
        int | None,
        o.Option(
            "--lora", help="Train adapters of this rank, not the model's weights.", min=1, metavar="RANK"
        ),
    ] = None,
    output: Annotated[
        Path | None,
        o.Option("--output", "-o", help="The folder of the run; runs/PRESET by default.", metavar="FOLDER"),
    ] = None,
    set: o.SetOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Train a part of the model from a preset's recipe. Ctrl-C saves and stops; the same command goes on.

    On several GPUs, or processes: torchrun --nproc-per-node 2 -m uniavgen_cli train ...

    \b
    Examples:
      uniavgen train --preset nano-joint --set train.steps=2000 -o runs/short
      uniavgen train --data latents --lora 16 -o runs/mine
    """
    from uniavgen_cli.config import load_preset, preset_names

    if preset is None and data is None:
        raise UsageError("train needs --preset, or --data with clips of your own", "uniavgen train --help")
    recipe = load_preset(preset or OWN_DATA, set or ())
    if recipe.train is None:
        recipes = ", ".join(name for name in preset_names() if load_preset(name).train is not None)
        raise UsageError(f"preset {recipe.name} has no recipe to train", f"take one of {recipes}")
    recipe = _with_options(recipe, data, lora)
    folder = output or Path("runs") / recipe.name

    from uniavgen_cli.training import processes
    from uniavgen_cli.training.stages import build_stage, training_device
    from uniavgen_cli.training.trainer import run

    with processes.joined():
        quiet = quiet or processes.rank() > 0
        with _output.progress(quiet=quiet) as progress:
            stage = build_stage(recipe, folder, progress)
        with _reports(quiet) as report:
            finished = run(stage, folder, device=training_device(recipe), report=report)
        writes = processes.rank() == 0
    if not writes:
        return
    if not finished:
        raise Interrupted(f"stopped, and saved in {folder}", "the same command goes on from there")
    if json:
        _output.data_json({"preset": recipe.name, "path": str(folder), "steps": stage.steps})
    else:
        _output.data(str(folder))


def _with_options(recipe: "Preset", data: Path | None, lora: int | None) -> "Preset":
    """The recipe with what --data and --lora say. Raises UsageError, InputError."""
    changes: dict[str, Any] = {}
    if data is not None:
        from uniavgen_cli.data.prepared import read_manifest

        manifest = read_manifest(data)
        if manifest is None:
            raise InputError(f"{data} is no folder of prepared clips", f"uniavgen prepare DIR -o {data}")
        if not any(entry["clips"] for entry in manifest["files"].values()):
            raise InputError(f"{data} holds no clips", "its left-out.csv says why")
        changes["data"] = str(data)
    if lora is not None:
        changes["lora_rank"] = lora
    if changes and (recipe.train or {}).get("part") != "joint":
        raise UsageError(f"--data and --lora are for the joint model, not {recipe.name}", "take nano-own")
    return recipe.model_copy(update={"train": {**(recipe.train or {}), **changes}})


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
