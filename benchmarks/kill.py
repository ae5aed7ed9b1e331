"""Kill a batch at random moments, with kill -9, and count what is lost.

    python benchmarks/kill.py --runs 30 --workers 2 --seed 1

An unbroken batch of --jobs clips is made first. Each run then starts the same batch in a folder of its own,
kills it after a random part of the unbroken run's time (with --at clip: at a random moment after its first
clip), counts what is there, and lets a second batch finish. Lost is a clip that was there and is there no
more, or whose bytes are not the unbroken run's; left is a process still running five seconds after the kill.
One JSON object is printed.
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
from pathlib import Path
from typing import Any

TASKS = (
    "{{task: generate, prompt: A man with a grey beard, seed: {n}, output: c{n}}}",
    "{{task: dub, video: talk.mp4, speech: Hello., seed: {n}, output: c{n}}}",
    "{{task: animate, face: face.png, sound: talk.mp4, seed: {n}, output: c{n}}}",
    "{{task: continue, video: talk.mp4, duration: 0.5, seed: {n}, output: c{n}}}",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", choices=("any", "clip"), default="any")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory(prefix="uniavgen-kill-") as name:
        folder = Path(name)
        write_jobs(folder, options.jobs)
        batch = [
            sys.executable,
            "-m",
            "uniavgen_cli",
            "batch",
            "jobs.yaml",
            "--workers",
            str(options.workers),
        ]
        batch += ["--quiet", "-o"]
        begin = time.monotonic()
        subprocess.run([*batch, "whole"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        unbroken_s = time.monotonic() - begin
        whole = hashes(folder / "whole")
        assert len(whole) == options.jobs
        counts = {"runs": 0, "clips_at_the_kill": 0, "lost": 0, "not_finished": 0, "processes_left": 0}
        for run in range(options.runs):
            counts["runs"] += 1
            for what, count in one_run(
                batch, folder, f"run{run}", whole, unbroken_s, draw, options.at
            ).items():
                counts[what] += count
            print(f"{run + 1}/{options.runs} {counts}", file=sys.stderr, flush=True)
    print(json.dumps({**vars(options), "unbroken_s": round(unbroken_s, 1), **counts}))


def write_jobs(folder: Path, count: int) -> None:
    """jobs.yaml in `folder`, and the drawn, speaking person it is about."""
    import cv2

    from uniavgen_cli.data.dataset import sample_clip
    from uniavgen_cli.media.video import write_clip

    clip = sample_clip(11, 4, lengths=(17,), sizes=((128, 128),))
    frames = clip.draw().frames
    cv2.imwrite(str(folder / "face.png"), frames[0][:, :, ::-1])
    write_clip(folder / "talk.mp4", frames, clip.samples, 16, 24_000)
    jobs = "\n".join("- " + TASKS[n % len(TASKS)].format(n=n) for n in range(count))
    (folder / "jobs.yaml").write_text(
        f"defaults: {{duration: 1, steps: 2}}\njobs:\n{jobs}\n", encoding="utf-8"
    )


def one_run(
    batch: list[str],
    folder: Path,
    name: str,
    whole: dict[str, str],
    unbroken_s: float,
    draw: random.Random,
    at: str,
) -> dict[str, int]:
    """One batch killed and gone on with; what was counted."""
    process = subprocess.Popen(
        [*batch, name],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    if at == "clip":
        while process.poll() is None and not hashes(folder / name):
            time.sleep(0.02)
        time.sleep(draw.random() * 0.3 * unbroken_s)
    else:
        time.sleep(draw.random() * unbroken_s)
    process.kill()
    process.wait()
    left = still_running(process.pid)
    there = hashes(folder / name)
    finished = subprocess.run([*batch, name], cwd=folder, check=False, stdout=subprocess.DEVNULL)
    after = hashes(folder / name)
    return {
        "clips_at_the_kill": len(there),
        "lost": sum(whole.get(clip) != found or after.get(clip) != found for clip, found in there.items()),
        "not_finished": int(finished.returncode != 0 or after != whole),
        "processes_left": left,
    }


def hashes(folder: Path) -> dict[str, str]:
    """The visible files of a folder."""
    if not folder.is_dir():
        return {}
    files: list[Any] = [path for path in folder.iterdir() if not path.name.startswith(".")]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


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
