"""What nano takes on a CPU, measured, beside what `uniavgen plan` says it will.

    python benchmarks/memory_plan.py [--task dub] [--steps 2]

One clip of the full window is made; the measure is the peak of this process's resident memory over what it
was once everything was imported, read from /proc (Linux). Freed memory is given back at once
(`memory.give_back_freed`), or the peak would be the allocator's.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> None:
    parser = argparse.ArgumentParser(description="Nano's memory, measured beside what is planned.")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--task", choices=("generate", "dub"), default="generate")
    given = parser.parse_args()
    steps, task = given.steps, given.task

    import numpy as np
    import torch

    from uniavgen_cli.config import load_preset
    from uniavgen_cli.engine import memory
    from uniavgen_cli.engine.engine import Engine
    from uniavgen_cli.engine.request import Request
    from uniavgen_cli.media.video import write_clip
    from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig

    memory.give_back_freed()
    overrides = [f"sampling.steps={steps}", "runtime.device=cpu", "runtime.dtype=float32"]
    preset = load_preset("nano", overrides)
    with torch.device("meta"):  # torch imports much of itself when a module is first built here
        UniAVGen(UniAVGenConfig(**preset.model))
    peaks: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        request = Request(task="generate", prompt="A man, smiling", duration_s=5.06, seed=1)
        if task == "dub":
            clip = Path(folder) / "given.mp4"
            frames = np.random.default_rng(0).integers(0, 255, (81, 128, 128, 3)).astype(np.uint8)
            sound = (0.3 * np.sin(np.arange(24_000 * 5) / 20)).astype(np.float32)
            write_clip(clip, frames, sound, 16, 24_000)
            del frames
            request = Request(task="dub", video=clip, speech="Good morning.", seed=1)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resident("VmRSS")

        def seen(stage: str, done: int, total: int) -> None:
            if done == total:
                peaks[stage] = resident("VmHWM") - before
                Path("/proc/self/clear_refs").write_text("5")

        Engine.from_preset(preset).run(request, seen)

    from uniavgen_cli.engine import costs

    counted = costs.cost(preset, memory.window(preset, 128, None), "cpu", torch.float32, task)
    stages = memory.stages(counted, memory.MODES[0], "cpu")
    report = {
        "task": task,
        "predicted_mib": round(max(stage.host for stage in stages) / 2**20, 1),
        "measured_mib": round(max(peaks.values()) / 2**20, 1),
        "predicted": {stage.name: round(stage.host / 2**20, 1) for stage in stages},
        "measured": {stage: round(peak / 2**20, 1) for stage, peak in peaks.items()},
        "torch": torch.__version__,
    }
    print(json.dumps(report))


def resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    main()
