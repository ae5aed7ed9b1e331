"""`uniavgen plan`: how much memory a preset needs, stage by stage, and in which mode it would run."""

import re
from typing import Annotated, Any

from uniavgen_cli.commands import _options as o
from uniavgen_cli.commands import _output
from uniavgen_cli.errors import UsageError

TASKS = ("generate", "animate", "continue", "dub")  # of which dub needs most: all its frames are encoded


def plan(
    preset: o.PresetOption = o.DEFAULT_PRESET,
    size: o.SizeOption = None,
    duration: o.DurationOption = None,
    gpu_memory: Annotated[
        str | None,
        o.Option("--gpu-memory", help="Plan for a GPU of so much; by default what is free.", metavar="24GB"),
    ] = None,
    task: Annotated[
        str, o.Option("--task", help="generate, animate, continue or dub.", metavar="TASK")
    ] = "generate",
    set: o.SetOption = None,
    json: o.JsonOption = False,
) -> None:
    """Count the memory each stage needs, and say which mode fits; neither weights nor a GPU are needed.

    \b
    Examples:
      uniavgen plan
      uniavgen plan --preset uniavgen --gpu-memory 24GB
    """
    from uniavgen_cli.commands._clip import parse_size
    from uniavgen_cli.config import load_preset

    if task not in TASKS:
        raise UsageError(f"there is no task {task!r}", f"there are {', '.join(TASKS)}")
    budget = None if gpu_memory is None else parse_memory(gpu_memory)
    chosen, pixels = load_preset(preset, set or ()), parse_size(size)
    if duration is not None and not 0 < duration < 3600:
        raise UsageError(f"--duration {duration:g} is no length of a clip", "give seconds, such as 3.5")

    import torch

    from uniavgen_cli import runtime
    from uniavgen_cli.engine import costs, memory

    spec = memory.window(chosen, pixels, duration)
    where = runtime.choose(chosen.runtime.device, chosen.runtime.dtype, "auto")
    device_type = "cuda" if budget is not None else torch.device(where.device.value).type
    if budget is None and device_type == "cuda":
        budget = where.memory_bytes
    dtype = torch.bfloat16 if gpu_memory is not None and chosen.runtime.dtype == "auto" else where.torch_dtype
    counted = costs.cost(chosen, spec, device_type, dtype, task)
    report: dict[str, Any] = {
        "preset": chosen.name,
        "task": task,
        "device": device_type,
        "dtype": str(dtype).removeprefix("torch."),
        "window": {"frames": spec.num_frames, "width": spec.width, "height": spec.height},
        "bytes": vars(counted),
    }
    mode: memory.Mode | None = memory.MODES[0]
    if device_type == "cuda":
        assert budget is not None
        asked = chosen.runtime.memory
        mode = memory.choose_mode(counted, budget) if asked == "auto" else memory.mode_named(asked)
        report["gpu_bytes"] = budget
        report["modes"] = [
            {
                "mode": one.name,
                "about": one.about,
                "runs": one.runs,
                "gpu": memory.gpu_peak(counted, one),
                "host": max(stage.host for stage in memory.stages(counted, one, device_type)),
                "fits": memory.gpu_peak(counted, one) <= budget,
            }
            for one in memory.MODES
        ]
    report["mode"] = mode.name if mode else None
    report["stages"] = [
        vars(stage) for stage in memory.stages(counted, mode or memory.MODES[-1], device_type)
    ]
    _report(report, json)


def _report(report: dict[str, Any], json: bool) -> None:
    if json:
        _output.data_json(report)
        return
    from uniavgen_cli.engine.memory import gib

    window, mode = report["window"], report["mode"]
    _output.data(
        f"{report['preset']}, {report['task']}: {window['frames']} frames of "
        f"{window['width']}x{window['height']}, {report['dtype']}, on {report['device']}"
    )
    _output.table(
        [("stage", "GPU", "host", "how it is counted")]
        + [(row["name"], gib(row["gpu"]), gib(row["host"]), row["how"]) for row in report["stages"]]
    )
    if report["device"] == "cpu":
        _output.data(f"host memory at the peak: {gib(max(row['host'] for row in report['stages']))}")
        return
    _output.data("")
    _output.table(
        [("mode", "GPU", "host", f"in {gib(report['gpu_bytes'])}", "what it does")]
        + [
            (
                row["mode"],
                gib(row["gpu"]),
                gib(row["host"]),
                "too much" if not row["fits"] else "fits" if row["runs"] else "needs torchao",
                row["about"],
            )
            for row in report["modes"]
        ]
    )
    row = next((row for row in report["modes"] if row["mode"] == mode), None)
    if row is None:
        _output.data(
            "no mode fits: take a smaller --size or a shorter --duration (the stages are of the last)"
        )
    else:
        _output.data(f"it would run {mode}" + ("" if row["fits"] else ", as the preset says, and not fit"))


def parse_memory(text: str) -> int:
    """`24GB` as bytes; GB is what a card's maker means by it, 2**30 bytes. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*(GB|GiB|G|MB|MiB|M)?", text.strip(), re.IGNORECASE)
    if not match or float(match[1]) == 0:
        raise UsageError(f"--gpu-memory {text} is no amount of memory", "give it as in 24GB or 11500MB")
    return round(float(match[1]) * 2 ** (20 if (match[2] or "G")[0] in "mM" else 30))
