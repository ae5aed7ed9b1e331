"""Kill a batch, or the four commands, at random moments with kill -9, and count what is lost.

    python benchmarks/kill.py --runs 30 --workers 2 --seed 1
    python benchmarks/kill.py --runs 12 --commands --seconds 11 --seed 1

An unbroken batch of --jobs clips of --seconds each is made first, or with --commands a clip by each of the
four commands. Each run then starts the same in a folder of its own, kills it after a random part of the
unbroken run's time (with --at clip: at a random moment after its first clip; with --at window: after the
first window of a long one is whole), counts what is there, and lets the same command finish. Lost is a clip
that was there and is there no more, or whose bytes are not the unbroken run's; taken up are windows that
were whole at the kill and were not made again; left is a process still running five seconds after the kill,
or a file that is none of the clips after the second run. One JSON object is printed.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TASKS = (
    "{{task: generate, prompt: A man with a grey beard, speech: Good morning., seed: {n}, output: c{n}}}",
    "{{task: dub, video: talk.mp4, speech: Hello., seed: {n}, output: c{n}}}",
    "{{task: animate, face: face.png, sound: talk.mp4, seed: {n}, output: c{n}}}",
    "{{task: continue, video: talk.mp4, duration: {seconds}, seed: {n}, output: c{n}}}",
)
COMMANDS = (
    (
        "generate",
        "--prompt",
        "A man with a grey beard",
        "--speech",
        "Good morning.",
        "--duration",
        "{seconds}",
    ),
    ("dub", "talk.mp4", "--speech", "Hello."),
    ("animate", "face.png", "talk.mp4"),
    ("continue", "talk.mp4", "--duration", "{seconds}"),
)
FPS = 16
Start = Callable[[str], list[str]]  # the command that writes into a folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="of each clip; 5.1 and more are several windows"
    )
    parser.add_argument("--commands", action="store_true", help="the four commands in turn, and no batch")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", choices=("any", "clip", "window"), default="any")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="uniavgen-kill-") as name:
        folder = Path(name)
        write_jobs(folder, options.jobs, options.seconds, options.size)
        starts = commands(options) if options.commands else [batch(options.workers)]
        unbroken = [whole_run(start, folder, f"whole{n}") for n, start in enumerate(starts)]
        counts: dict[str, int] = {"runs": 0}
        for run in range(options.runs):
            at = run % len(starts)
            found = one_run(starts[at], folder, f"run{run}", *unbroken[at], draw, options.at)
            for what, count in {"runs": 1, **found}.items():
                counts[what] = counts.get(what, 0) + count
            print(f"{run + 1}/{options.runs} {counts}", file=sys.stderr, flush=True)
    seconds = [round(took_s, 1) for _, took_s in unbroken]
    print(json.dumps({**vars(options), "unbroken_s": seconds, **counts}))


def batch(workers: int) -> Start:
    call = [sys.executable, "-m", "uniavgen_cli", "batch", "jobs.yaml", "--workers", str(workers), "--quiet"]
    return lambda name: [*call, "-o", name]


def commands(options: argparse.Namespace) -> list[Start]:
    more = ["--steps", "2", "--size", str(options.size), "--seed", "1", "--quiet"]

    def start_of(words: tuple[str, ...]) -> Start:
        call = [sys.executable, "-m", "uniavgen_cli", *(w.format(seconds=options.seconds) for w in words)]
        return lambda name: [*call, *more, "-o", f"{name}/clip.mp4"]

    return [start_of(words) for words in COMMANDS]


def write_jobs(folder: Path, count: int, seconds: float, size: int) -> None:
    """jobs.yaml in `folder`, and the drawn, speaking person it is about."""
    import cv2
    import numpy as np

    from uniavgen_cli.data.dataset import sample_clip
    from uniavgen_cli.media.video import write_clip

    clip = sample_clip(11, 4, lengths=(81,), sizes=((128, 128),))
    frames = clip.draw().frames
    cv2.imwrite(str(folder / "face.png"), frames[0][:, :, ::-1])
    num_frames = round(seconds * FPS)
    frames = np.resize(frames, (num_frames, *frames.shape[1:]))
    samples = np.resize(clip.samples, round(seconds * 24_000))
    write_clip(folder / "talk.mp4", frames, samples, FPS, 24_000)
    jobs = "\n".join("- " + TASKS[n % len(TASKS)].format(n=n, seconds=seconds) for n in range(count))
    defaults = f"{{duration: {seconds}, steps: 2, size: {size}}}"
    (folder / "jobs.yaml").write_text(f"defaults: {defaults}\njobs:\n{jobs}\n", encoding="utf-8")


def whole_run(start: Start, folder: Path, name: str) -> tuple[dict[str, str], float]:
    """The clips of an unbroken run and the seconds it took."""
    (folder / name).mkdir()
    begin = time.monotonic()
    subprocess.run(start(name), cwd=folder, check=True, stdout=subprocess.DEVNULL)
    took_s = time.monotonic() - begin
    return hashes(folder / name), took_s


def one_run(
    start: Start,
    folder: Path,
    name: str,
    whole: dict[str, str],
    unbroken_s: float,
    draw: random.Random,
    at: str,
) -> dict[str, int]:
    """One run killed and gone on with; what was counted."""
    (folder / name).mkdir()
    process = subprocess.Popen(
        start(name),
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    first = {
        "any": lambda: True,
        "clip": lambda: hashes(folder / name),
        "window": lambda: windows(folder / name),
    }
    while process.poll() is None and not first[at]():
        time.sleep(0.02)
    time.sleep(draw.random() * unbroken_s * (1.0 if at == "any" else 0.3))
    process.kill()
    process.wait()
    processes = still_running(process.pid)
    there, kept = hashes(folder / name), windows(folder / name)
    second = subprocess.Popen(start(name), cwd=folder, stdout=subprocess.DEVNULL)
    same = set(kept)
    while second.poll() is None:
        now = windows(folder / name)
        same -= {path for path in same if path in now and now[path] != kept[path]}
        time.sleep(0.05)
    after = hashes(folder / name)
    return {
        "clips_at_the_kill": len(there),
        "windows_at_the_kill": len(kept),
        "windows_taken_up": len(same),
        "lost": sum(whole.get(clip) != found or after.get(clip) != found for clip, found in there.items()),
        # a command does not replace a clip that is there
        "not_finished": int(after != whole or (second.returncode != 0 and not there)),
        "processes_left": processes,
        "files_left": len([*(folder / name).rglob("*.part")]) + len(windows(folder / name)),
    }


def hashes(folder: Path) -> dict[str, str]:
    """The visible files of a folder."""
    files: list[Any] = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def windows(folder: Path) -> dict[str, int]:
    """The whole windows of long clips that are kept in a folder, and when each was written."""
    found = {}
    for path in folder.rglob("*.safetensors"):
        with suppress(FileNotFoundError):  # once its clip is whole
            found[str(path)] = path.stat().st_mtime_ns
    return found


def still_running(leader: int) -> int:
    """How many processes of a session are there five seconds later, if any are there now."""
    end = time.monotonic() + 5
    while True:
        found = 0
        for number in (entry for entry in os.listdir("/proc") if entry.isdigit()):
            try:
                fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            found += int(fields[3]) == leader and fields[0] != "Z"
        if not found or time.monotonic() > end:
            return found
        time.sleep(0.1)


if __name__ == "__main__":
    main()
