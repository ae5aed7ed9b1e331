"""Damaged files of every kind: refused in one line or read, never a traceback, a hang or half an output.

UNIAVGEN_FUZZ_SEED picks other damage; the `slow` tests try 500 files in one process and 40 in real commands.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from media_files import ffmpeg, make_sound, make_video, quadrants
from PIL import Image
from processes import in_session
from tiny_model import write_tiny_preset

from uniavgen_cli.config import load_preset, weights_files
from uniavgen_cli.engine.jobfile import read_rows
from uniavgen_cli.engine.jobs import check_jobs
from uniavgen_cli.engine.provenance import from_tags, remake, to_tags
from uniavgen_cli.errors import UniAVGenError
from uniavgen_cli.media.audio import read_audio
from uniavgen_cli.media.image import image_size, read_image
from uniavgen_cli.media.probe import probe, require_image, require_sound, require_video
from uniavgen_cli.media.video import read_frames, read_metadata, write_animated

ROOT = Path(__file__).resolve().parent.parent
SEED = int(os.environ.get("UNIAVGEN_FUZZ_SEED", "0"))
DOCUMENTED = {0, 2, 3, 4, 5, 6}
MANY = pytest.param(500, marks=pytest.mark.slow)
SOME = pytest.param(40, marks=pytest.mark.slow)
LONGEST_S = 20.0  # of processor time, this process's and its ffmpeg's, for one file

YAML = """\
defaults: {duration: 0.5, steps: 3, set: {sampling.shift: 3.0}}
jobs:
- task: generate
  prompt: A man with a grey beard
  output: one.mp4
- {task: dub, video: talk.mp4, speech: "Hello.", seed: 4, keep_sound: true}
- {task: animate, face: face.png, sound: speech.wav, size: 96x64, private: yes}
- task: continue
  video: talk.mp4
  voice: speech.wav
  voice_text: "Good day."
  face_index: 0
"""
JSONL = """\
{"defaults": {"duration": 0.5}}
{"task": "generate", "prompt": "A man", "set": ["sampling.steps=2"], "output": "one.mp4"}
{"task": "animate", "face": "face.png", "sound": "speech.wav", "seed": 12}
"""
CSV = """\
task,prompt,duration,video,face,sound,seed,output
generate,"A man, old",0.5,,,,3,one
dub,,,talk.mp4,,,,
animate,,,,face.png,speech.wav,4,"two"
"""
RELEASED = """\
data_id,ref_image_path,ref_audio_path,ref_speech_content,video_path,audio_path,speech_content,prompt,lang
0,face.png,,,,,Hello.,A man speaks.,en
3,face.png,,,talk.mp4,,Hello.,A man speaks.,en
"""
TOKENS = [
    b"\0", b"\xff\xfe", b"\n", b"\t", b'"', b"'", b"&a ", b"*a", b"!!python/object/apply:os.system ",
    b"{", b"[", b"- ", b": ", b"<<: ", b"null", b".nan", b"1e999", b"-1", b"9" * 40, b"2024-99-99",
    b"../../x.mp4", b"/etc/passwd", b"%s%n", b"http://127.0.0.1:9/x.mp4", b"concat:a|b", b"@speech.wav",
    b"a" * 3000, "\u202e漢".encode(), b",", b"true", b"|\n",
]  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator, tokens: list[bytes], most: int = 6) -> bytes:
    """`data` after one to `most` kinds of damage: bits, bytes, runs, cuts, repeats, moves, odd words."""
    content = bytearray(data)
    for _ in range(rng.integers(1, most + 1)):
        if not content:
            break
        # headers are short and decide most, so half of the damage is done there
        reach = min(len(content), 2048) if rng.random() < 0.5 else len(content)
        at = int(rng.integers(reach))
        length = int(rng.integers(1, 65))
        kind = rng.integers(8)
        if kind == 0:
            content[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[at : at + length] = rng.bytes(min(length, len(content) - at))
        elif kind == 2:
            content[at : at + length] = rng.choice([b"\0", b"\xff"]) * length
        elif kind == 3:
            del content[at:]
        elif kind == 4:
            del content[at : at + length]
        elif kind == 5:
            content[at:at] = content[at : at + length] * int(rng.integers(1, 9))
        elif kind == 6:
            other = int(rng.integers(len(content)))
            content[at : at + length] = content[other : other + length]
        else:
            content[at:at] = tokens[int(rng.integers(len(tokens)))]
    return bytes(content)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small good files of many kinds, and a tiny preset."""
    folder = tmp_path_factory.mktemp("seeds")
    fast = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-preset", "ultrafast")
    make_video(folder / "talk.mp4", size="96x64", encode=fast)
    make_video(folder / "front.mp4", size="96x64", encode=(*fast, "-movflags", "+faststart"))
    make_video(folder / "a.mkv", size="96x64", encode=(*fast, "-c:a", "flac"))
    make_video(folder / "a.webm", size="96x64", encode=("-c:v", "libvpx", "-deadline", "realtime"))
    make_video(folder / "a.avi", size="96x64", encode=("-c:v", "mjpeg", "-c:a", "pcm_s16le"))
    make_video(folder / "a.ts", size="96x64", encode=(*fast, "-c:a", "aac"))
    make_video(folder / "a.mov", size="96x64", encode=("-c:v", "prores_ks", "-c:a", "pcm_s24le"))
    for name in ("speech.wav", "a.mp3", "a.flac", "a.ogg", "a.m4a", "a.aac", "a.aiff"):
        make_sound(folder / name, rate=24_000)
    image = Image.fromarray(quadrants(96, 128))
    for name in ("face.png", "a.jpg", "a.webp", "a.gif", "a.bmp", "a.tiff", "a.ppm", "a.ico", "a.tga"):
        image.save(folder / name)
    write_tiny_preset(folder)
    return folder


def media_of(folder: Path) -> list[Path]:
    left_out = (".yaml", "")
    return sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in left_out)


def tried(action: Callable[[], object]) -> UniAVGenError | None:
    """The error with which `action` refuses; anything but a one-line error of ours fails the test."""
    begin = time.process_time() + sum(os.times()[2:4])
    try:
        action()
        return None
    except UniAVGenError as error:
        assert "\n" not in str(error) and error.exit_code in DOCUMENTED
        return error
    finally:
        assert time.process_time() + sum(os.times()[2:4]) - begin < LONGEST_S


def read_all(path: Path) -> None:
    """Everything that the tasks do with a given file before the model has it."""
    media = probe(path)
    if media.image is not None:
        picture = read_image(path)
        assert picture.dtype == np.uint8 and picture.shape == (media.image.height, media.image.width, 3)
    read_metadata(path)
    if media.video is not None:
        assert media.video.width > 0 and media.video.height > 0 and media.video.num_frames > 0
        frames = read_frames(path, 16, 64, 64, num_frames=81)
        assert frames.dtype == np.uint8 and frames.shape[1:] == (64, 64, 3) and len(frames) <= 81
    if media.audio is not None:
        assert media.audio.channels > 0 and media.audio.sample_rate > 0
        samples = read_audio(path)
        assert samples.dtype == np.float32 and samples.ndim == 1


@pytest.mark.parametrize("count", [40, MANY])
def test_damaged_media_in_the_readers(count: int, seeds: Path, tmp_path: Path) -> None:
    files = media_of(seeds)
    refused = 0
    for number in range(count):
        rng = np.random.default_rng([SEED, 1, number])
        source = files[number % len(files)]
        path = tmp_path / f"{number}{source.suffix}"
        path.write_bytes(mutated(source.read_bytes(), rng, TOKENS))
        errors = [
            tried(lambda path=path, reader=reader: reader(path))
            for reader in (read_all, require_image, require_sound, require_video, image_size)
        ]
        assert sum(error is None for error in errors[1:4]) <= 2  # never a picture and a video at once
        refused += errors[0] is not None
        path.unlink()
    assert 0 < refused < count  # the damage is neither too mild nor too hard to show anything
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [40, MANY])
def test_damaged_job_files_in_the_reader(count: int, seeds: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(seeds)
    before = {path.name for path in seeds.iterdir()}
    texts = [("m.yaml", YAML), ("m.jsonl", JSONL), ("m.csv", CSV), ("n.csv", RELEASED)]
    good = bad = 0

    def look(path: Path) -> None:
        nonlocal good, bad
        jobs, problems = check_jobs(read_rows(path), seeds, {"preset": "tiny.yaml"})
        for problem in problems:
            assert "\n" not in " ".join(str(problem.error).split()) and problem.error.exit_code in DOCUMENTED
        for job in jobs:
            assert Path(job.name).name == job.name and not job.name.startswith((".", "-"))
            assert len(job.name.encode()) <= 200 and "/" not in job.name and "\0" not in job.name
        good, bad = good + len(jobs), bad + len(problems)

    for number in range(count):
        rng = np.random.default_rng([SEED, 2, number])
        name, text = texts[number % len(texts)]
        path = seeds / name
        path.write_bytes(mutated(text.encode(), rng, TOKENS))
        bad += tried(lambda path=path: look(path)) is not None
        path.unlink()
    assert good and bad
    assert {path.name for path in seeds.iterdir()} == before


@pytest.mark.parametrize("count", [40, MANY])
def test_damaged_records(count: int, seeds: Path) -> None:
    """The metadata of a clip are somebody else's words too."""
    record = {
        "uniavgen": "0", "voice_given": False, "task": "animate", "seed": 4, "preset": "nano", "base": "nano",
        "set": {}, "options": {"face": "face.png", "sound": "speech.wav", "size": [64, 96], "steps": 3},
        "left_out": [], "inputs": {"face": {"bytes": 1, "sha256": "0"}}, "weights_sha256": "0",
    }  # fmt: skip
    text = to_tags(record)["comment"].encode()
    for number in range(count):
        rng = np.random.default_rng([SEED, 3, number])
        made = from_tags({"comment": mutated(text, rng, TOKENS).decode(errors="replace")})
        if made is not None:
            assert tried(lambda made=made: remake(made, seeds / "talk.mp4")) is not None


@pytest.mark.parametrize("name", ["a" * 5000, "a\0b", "/".join(["a" * 200] * 40)])
def test_names_that_no_file_can_have(name: str, seeds: Path) -> None:
    record = {
        "uniavgen": "0", "voice_given": False, "task": "animate", "seed": 4, "preset": "nano", "base": "nano",
        "set": {}, "options": {"face": name, "sound": "speech.wav"}, "left_out": [], "inputs": {},
        "weights_sha256": "0",
    }  # fmt: skip
    assert isinstance(tried(lambda: remake(record, seeds / "talk.mp4")), UniAVGenError)
    for key in ("weights", "lora"):
        preset = load_preset("nano").model_copy(update={key: name})
        assert isinstance(tried(lambda preset=preset: weights_files(preset)), UniAVGenError)
    assert isinstance(tried(lambda: load_preset(f"{name}.yaml")), UniAVGenError)


COMMANDS = [
    ("dub", "{m}", "--speech", "Hello.", "-o", "out.mp4"),
    ("continue", "{m}", "--duration", "0.25", "-o", "out.mp4"),
    ("animate", "face.png", "{m}", "-o", "out.mp4"),
    ("animate", "{m}", "speech.wav", "-o", "out.mp4"),
    ("generate", "--prompt", "x", "--duration", "0.5", "--voice", "{m}", "-o", "out.mp4"),
    ("info", "{m}"),
    ("rerun", "{m}", "-o", "out.mp4"),
    ("batch", "{j}", "-o", "out"),
]


# mild kinds, of which many get through the checks and reach the model
MILD = ("talk.mp4", "a.mkv", "a.ts", "a.jpg", "speech.wav", "a.avi")
JOB_FILES = (("m.yaml", YAML), ("m.jsonl", JSONL), ("m.csv", CSV))


@pytest.mark.parametrize("count", [4, SOME])
@pytest.mark.parametrize("kind", ["media", "jobs"])
def test_damaged_files_in_the_commands(count: int, kind: str, seeds: Path, tmp_path: Path) -> None:
    for number in range(count):
        run_on_damage(number, kind, seeds, tmp_path)


def run_on_damage(number: int, kind: str, seeds: Path, folder: Path) -> tuple[list[str], int]:
    """One real command on damaged file `number`: its words and exit code, and what must hold asserted."""
    rng = np.random.default_rng([SEED, 4 + (kind == "jobs"), number])
    for name in ("face.png", "speech.wav", "talk.mp4"):
        (folder / name).write_bytes((seeds / name).read_bytes())
    if kind == "media":
        source = seeds / MILD[number % len(MILD)]
        data, damaged = source.read_bytes(), folder / f"m{source.suffix}"
        arguments = COMMANDS[number % (len(COMMANDS) - 1)]
    else:
        name, text = JOB_FILES[number % len(JOB_FILES)]
        data, damaged = text.encode(), folder / name
        arguments = COMMANDS[-1]
    # one kind of damage leaves some job files good enough to be run
    damaged.write_bytes(mutated(data, rng, TOKENS, most=1 if kind == "jobs" and number % 2 else 6))
    before = {path.name for path in folder.iterdir()}
    words = [word.format(m=damaged.name, j=damaged.name) for word in arguments]
    process = subprocess.Popen(
        [sys.executable, "-m", "uniavgen_cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "UNIAVGEN_PRESET": str(seeds / "tiny.yaml")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    out, err = (data.decode(errors="replace") for data in process.communicate(timeout=300))
    assert process.returncode in DOCUMENTED, (words, err)
    assert "Traceback" not in out + err, (words, err)
    assert not left_running(process.pid), words
    made = {path.name for path in folder.iterdir()} - before
    if process.returncode:
        assert err.splitlines()[-1].startswith("error: ")
        assert made <= {"out"} and all(probe(path).video for path in folder.glob("out/[!.]*"))
    else:
        assert made <= {"out", "out.mp4"}
    for path in (folder / "out.mp4", damaged):
        path.unlink(missing_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    return words, process.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "number"),
    [
        (0, 2),  # sound that decodes and that no MP4 takes as it is
        (1, 8),  # a video to be continued with fewer pictures at its end than it says
    ],
)
def test_what_was_found_stays_mended(
    seed: int, number: int, seeds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "SEED", seed)
    assert run_on_damage(number, "media", seeds, tmp_path)[1] in (0, 3)


def test_sound_whose_packets_no_container_takes_is_encoded(seeds: Path, tmp_path: Path) -> None:
    """Found by the fuzz: AAC that decodes, but for a few frames, and that an MP4 refuses to copy."""
    data = bytearray((seeds / "a.ts").read_bytes())
    headers = [at for at in range(len(data) - 1) if data[at] == 0xFF and data[at + 1] in (0xF1, 0xF9)]
    for at in headers[2:4]:  # of the ADTS frames
        data[at : at + 2] = b"\0\0"
    (tmp_path / "damaged.ts").write_bytes(bytes(data))
    frames = np.zeros((8, 64, 64, 3), np.uint8)
    made = write_animated(tmp_path / "made.mp4", frames, tmp_path / "damaged.ts", 16)
    media = probe(made)
    assert media.audio is not None and media.audio.codec == "aac" and len(read_audio(made)) > 0
    whole = write_animated(tmp_path / "whole.mp4", frames, seeds / "a.ts", 16)
    assert probe(whole).audio is not None


def left_running(leader: int) -> list[str]:
    """What still runs of a command that has ended; what is just ending gets a moment."""
    end = time.monotonic() + 5
    while (found := in_session(leader)) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def test_the_mutations_follow_from_the_seed(seeds: Path) -> None:
    data = (seeds / "talk.mp4").read_bytes()
    one, again, other = (mutated(data, np.random.default_rng([seed, 1]), TOKENS) for seed in (3, 3, 4))
    assert one == again != other
    assert cv2.imread(str(seeds / "face.png")) is not None
    ffmpeg("-i", seeds / "talk.mp4", "-f", "null", "-")
