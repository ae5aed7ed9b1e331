"""Batches: every job once, whatever ends the run; only whole clips, with the bytes of an unbroken run."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from processes import in_session
from small_disk import small_disk
from tiny_model import write_tiny_preset

from uniavgen_cli.engine import provenance
from uniavgen_cli.media.probe import probe
from uniavgen_cli.media.video import read_metadata, write_clip

ROOT = Path(__file__).resolve().parent.parent
JOBS = """\
defaults: {duration: 0.5, preset: tiny.yaml}
jobs:
- {task: generate, prompt: A man, output: one}
- {task: dub, video: talk.mp4, speech: Hello., output: two.mp4, keep_sound: true}
- {task: animate, face: face.png, sound: speech.wav, output: three.mkv}
- {task: continue, video: talk.mp4, duration: 0.25}
- {task: generate, prompt: A woman, seed: 4, size: 96x64, private: true}
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs, a tiny preset, jobs.yaml, and `whole`, the folder an unbroken batch made of it."""
    folder = tmp_path_factory.mktemp("given")
    write_tiny_preset(folder)
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    tone = (0.3 * np.sin(np.arange(24_000) / 20)).astype(np.float32)
    cv2.imwrite(str(folder / "face.png"), cv2.GaussianBlur(picture, (0, 0), 4))
    soundfile.write(folder / "speech.wav", tone, 24_000)
    soundfile.write(folder / "silence.wav", 0 * tone, 24_000)
    write_clip(folder / "talk.mp4", np.stack([picture] * 16), tone, 16, 24_000)
    (folder / "jobs.yaml").write_text(JOBS)
    done = run(folder, "jobs.yaml", "whole", "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["made"], answer["kept"], answer["failed"]) == (5, 0, 0)
    return folder


def command(jobs: str, output: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "uniavgen_cli", "batch", jobs, "-o", output, *more]


def environment() -> dict[str, str]:
    left_out = ("UNIAVGEN_PRESET", "UNIAVGEN_DEBUG")
    return {key: value for key, value in os.environ.items() if key not in left_out} | {
        "PYTHONPATH": str(ROOT)
    }


def run(folder: Path, jobs: str, output: str, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(jobs, output, *more),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def started(folder: Path, jobs: str, output: str, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A batch in a session of its own, of which nothing is left when the block is left."""
    process = subprocess.Popen(
        command(jobs, output, *more),
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        wait_for(lambda: not in_session(process.pid))


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def clips(folder: Path) -> dict[str, str]:
    """The visible files and their hashes."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith(".")
    }


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in (folder / ".uniavgen" / "work").iterdir()]


def test_all_tasks_are_mixed_and_each_clip_says_how_it_was_made(given: Path) -> None:
    names = clips(given / "whole")
    assert {"one.mp4", "two.mp4", "three.mkv"} < set(names) and len(names) == 5
    assert leftovers(given / "whole") == []
    for name in names:
        made = provenance.from_tags(read_metadata(given / "whole" / name))
        assert made is not None and made["ai_generated"] is True and made["preset"] == "tiny"
        assert probe(given / "whole" / name).video is not None
        assert ("private" in made["options"]) == name.startswith("generate-clip-")


@pytest.mark.slow
def test_a_clip_of_a_batch_can_be_made_again(given: Path) -> None:
    again = given / "again.mp4"
    done = subprocess.run(
        [sys.executable, "-m", "uniavgen_cli", "rerun", "whole/two.mp4", "-o", str(again)],
        cwd=given,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert again.read_bytes() == (given / "whole" / "two.mp4").read_bytes()


def test_a_second_run_makes_what_is_missing_or_changed_and_nothing_else(given: Path) -> None:
    shutil.copytree(given / "whole", given / "second")
    before = {path.name: path.stat().st_ino for path in (given / "second").glob("*.m*")}
    done = run(given, "jobs.yaml", "second")
    assert done.returncode == 0 and "0 made, 5 kept, 0 failed" in done.stderr
    assert done.stdout.splitlines()[:2] == ["second/one.mp4", "second/two.mp4"]
    assert {path.name: path.stat().st_ino for path in (given / "second").glob("*.m*")} == before

    (given / "second" / "one.mp4").unlink()
    with (given / "second" / "three.mkv").open("r+b") as file:
        file.write(b"damage")
    (given / "changed.yaml").write_text(JOBS.replace("speech: Hello.", "speech: Good day."))
    done = run(given, "changed.yaml", "second", "--json")
    assert done.returncode == 0, done.stderr
    status = {Path(job["path"]).name: job["status"] for job in json.loads(done.stdout)["jobs"]}
    assert [name for name, how in status.items() if how == "made"] == ["one.mp4", "two.mp4", "three.mkv"]
    whole, second = clips(given / "whole"), clips(given / "second")
    assert {name for name in whole if whole[name] != second[name]} == {"two.mp4"}


def test_failures_are_listed_and_not_fatal_unless_asked(given: Path) -> None:
    shutil.copytree(given / "tiny", given / "broken")
    os.truncate(given / "broken" / "vocoder.safetensors", 1000)
    text = (given / "tiny.yaml").read_text()
    (given / "broken.yaml").write_text(text.replace(str(given / "tiny"), str(given / "broken")))
    (given / "failing.yaml").write_text(
        "defaults: {duration: 0.5, preset: tiny.yaml}\n"
        "jobs:\n"
        "- {task: generate, prompt: A man, preset: broken.yaml, output: bad}\n"
        "- {task: generate, prompt: A man, output: good}\n"
    )
    done = run(given, "failing.yaml", "failing")
    assert done.returncode == 5
    assert done.stdout == "failing/good.mp4\n" and list(clips(given / "failing")) == ["good.mp4"]
    assert "failed bad.mp4 (failing.yaml:3): " in done.stderr and "vocoder.safetensors" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: 1 of 2 jobs failed; ")
    assert "Traceback" not in done.stderr
    done = run(given, "failing.yaml", "fast", "--fail-fast")
    assert done.returncode == 5 and "1 not begun" in done.stderr and clips(given / "fast") == {}


@pytest.mark.parametrize("made", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_killed_batch_leaves_whole_clips_and_goes_on_with_the_same_bytes(given: Path, made: int) -> None:
    output = f"killed-{made}"
    with started(given, "jobs.yaml", output) as process:
        assert process.stderr is not None
        for _ in range(made):
            assert "made" in process.stderr.readline()
        if not made:
            wait_for(lambda: (given / output / ".uniavgen" / "claims").is_dir())
        process.send_signal(signal.SIGKILL)
    whole = clips(given / "whole")
    left = clips(given / output)
    assert len(left) >= made and left.items() <= whole.items()
    done = run(given, "jobs.yaml", output)
    assert done.returncode == 0, done.stderr
    assert clips(given / output) == whole and leftovers(given / output) == []


def test_a_long_clip_goes_on_from_its_last_whole_window(given: Path) -> None:
    (given / "long.yaml").write_text(
        "- {task: generate, prompt: A man, output: long, duration: 15, preset: tiny.yaml}\n"
    )
    assert run(given, "long.yaml", "long-whole").returncode == 0
    windows = given / "long-killed" / ".uniavgen" / "windows"
    with started(given, "long.yaml", "long-killed") as process:
        wait_for(lambda: list(windows.rglob("00001.safetensors")))
        process.send_signal(signal.SIGKILL)
    (kept,) = windows.rglob("00001.safetensors")
    seen = {kept.stat().st_mtime_ns}
    with started(given, "long.yaml", "long-killed") as process:
        while process.poll() is None:
            with suppress(FileNotFoundError):  # once the clip is whole
                seen.add(kept.stat().st_mtime_ns)
            time.sleep(0.005)
    assert process.returncode == 0 and len(seen) == 1  # it was taken up, and not made again
    assert clips(given / "long-killed") == clips(given / "long-whole")
    assert list(windows.iterdir()) == leftovers(given / "long-killed") == []


def test_ctrl_c_stops_within_two_seconds_and_says_what_is_kept(given: Path) -> None:
    with started(given, "jobs.yaml", "stopped", "--workers", "2") as process:
        assert process.stderr is not None
        assert "made" in process.stderr.readline()
        begin = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        assert process.wait(timeout=20) == 130
        assert time.monotonic() - begin < 2
        said = process.stderr.read()
    assert "Traceback" not in said
    kept = len(clips(given / "stopped"))
    assert f"interrupted; {kept} of 5 clips are whole in stopped" in said.splitlines()[-1]
    assert clips(given / "stopped").items() <= clips(given / "whole").items()
    assert leftovers(given / "stopped") == []


def test_two_batches_at_once_do_each_job_once(given: Path) -> None:
    with started(given, "jobs.yaml", "both", "--json") as one:
        other = run(given, "jobs.yaml", "both", "--json")
        out, err = one.communicate()
    assert one.returncode == other.returncode == 0, (err, other.stderr)
    counts = [json.loads(text) for text in (out, other.stdout)]
    assert sum(count["made"] for count in counts) == 5 == counts[0]["made"] + counts[0]["kept"]
    assert clips(given / "both") == clips(given / "whole")


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_job_alone(given: Path) -> None:
    with started(given, "jobs.yaml", "orphaned") as process:
        assert process.stderr is not None
        assert "1/5 made one.mp4" in process.stderr.readline()
        for child in Path("/proc").glob("[0-9]*/cmdline"):
            if b"spawn_main" in child.read_bytes():
                status = (child.parent / "stat").read_text().rpartition(")")[2].split()
                if int(status[1]) == process.pid:
                    os.kill(int(child.parent.name), signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 6 and "its worker was killed" in err
    assert len(out.splitlines()) == 4
    done = run(given, "jobs.yaml", "orphaned")
    assert done.returncode == 0 and clips(given / "orphaned") == clips(given / "whole")


@pytest.mark.slow
def test_an_input_that_changes_meanwhile_fails_its_job(given: Path) -> None:
    shutil.copy(given / "face.png", given / "changing.png")
    (given / "changing.yaml").write_text(
        "- {task: generate, prompt: A man, output: first, duration: 0.5, preset: tiny.yaml}\n"
        "- {task: animate, face: changing.png, sound: speech.wav, output: second, preset: tiny.yaml}\n"
    )
    with started(given, "changing.yaml", "changing") as process:
        wait_for(lambda: (given / "changing" / ".uniavgen" / "claims" / "first.mp4.lock").exists())
        with (given / "changing.png").open("ab") as file:
            file.write(b"more")
        _, err = process.communicate()
    assert process.returncode == 3 and "has changed since it was checked" in err
    assert list(clips(given / "changing")) == ["first.mp4"]


@pytest.mark.slow
def test_a_full_disk_loses_nothing_that_is_made(given: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    with small_disk(small, "96k") as grow:
        done = run(given, "jobs.yaml", str(small / "out"))
        assert done.returncode == 4, done.stderr
        assert "No space left" in done.stderr and "Traceback" not in done.stderr
        whole = clips(given / "whole")
        assert clips(small / "out").items() <= whole.items() and leftovers(small / "out") == []
        assert 0 < len(clips(small / "out")) < 5
        grow()
        done = run(given, "jobs.yaml", str(small / "out"))
        assert done.returncode == 0, done.stderr
        assert clips(small / "out") == whole
