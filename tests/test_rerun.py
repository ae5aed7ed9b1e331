"""A clip knows what it was made of, and can be made again byte for byte, or says why not."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from tiny_model import write_tiny_preset

from uniavgen_cli import engine
from uniavgen_cli.cli import main
from uniavgen_cli.config import load_preset
from uniavgen_cli.engine import provenance
from uniavgen_cli.media.video import read_metadata, write_clip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def presets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_preset(tmp_path_factory.mktemp("presets"))


@pytest.fixture
def run(
    tmp_path: Path, presets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command on the tiny preset in a folder of its own that holds the given files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIAVGEN_PRESET", str(presets))
    picture = cv2.GaussianBlur(
        np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8), (0, 0), 4
    )
    tone = (0.3 * np.sin(np.arange(24_000) / 20)).astype(np.float32)
    cv2.imwrite("face.png", picture)
    soundfile.write("speech.wav", tone, 24_000)
    write_clip("talk.mp4", np.stack([picture] * 16), tone, 16, 24_000)
    Path("talk.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello.\n")

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def record(path: str) -> dict:
    made = provenance.from_tags(read_metadata(path))
    assert made is not None
    return made


COMMANDS = [
    ("generate", "--prompt", 'A man says "Hello."', "--face", "face.png", "--voice", "speech.wav"),
    ("generate", "--prompt", "A woman", "--duration", "0.5", "--set", "sampling.shift=3", "--size", "96x64"),
    ("dub", "talk.mp4", "--speech", "Hello.", "--keep-sound"),
    ("animate", "face.png", "speech.wav"),
    ("dub", "talk.mp4", "--subtitles", "talk.srt"),
    ("continue", "talk.mp4", "--duration", "0.5"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: " ".join(arguments[:4]))
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_rerun_gives_the_same_bytes(
    arguments: tuple[str, ...], suffix: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run(*arguments, "--seed", "7", "-o", f"a{suffix}")
    assert code == 0, err
    monkeypatch.setenv("UNIAVGEN_DTYPE", "float32")  # the clip's own settings count, not today's
    monkeypatch.delenv("UNIAVGEN_PRESET")
    code, out, err = run("rerun", f"a{suffix}", "-o", f"b{suffix}", "--json")
    assert code == 0, err
    assert json.loads(out)["paths"] == [f"b{suffix}"] and "may differ" not in err
    assert Path(f"b{suffix}").read_bytes() == Path(f"a{suffix}").read_bytes()


def test_a_record_names_what_the_clip_was_made_of(run: Run) -> None:
    run("animate", "face.png", "speech.wav", "--seed", "7", "-o", "a.mp4")
    made = record("a.mp4")
    assert made["inputs"] == {
        name: provenance.hash_file(Path(path))
        for name, path in (("face", "face.png"), ("sound", "speech.wav"))
    }
    assert made["voice_given"] is True and made["voice_from"] == "sound"
    assert {"device", "dtype", "attention", "threads", "torch"} <= set(made["runtime"])
    assert "AI-generated" in read_metadata("a.mp4")["description"]
    assert "follows a given one" in read_metadata("a.mp4")["description"]
    run("generate", "--prompt", "A man", "--duration", "0.5", "-o", "b.mp4")
    assert record("b.mp4")["voice_given"] is False
    assert "no voice was given" in read_metadata("b.mp4")["description"]
    code, out, _ = run("info", "a.mp4")
    assert code == 0
    for word in (*made["inputs"]["face"]["sha256"], made["weights_sha256"], "threads", "face.png"):
        assert word in out


def test_inputs_are_found_elsewhere_when_they_are_the_same(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("animate", "face.png", "speech.wav", "--seed", "7", "-o", "a.mp4")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, _, err = run("rerun", "../a.mp4", "-o", "b.mp4")
    assert code == 0, err
    assert Path("b.mp4").read_bytes() == Path("../a.mp4").read_bytes()


def test_missing_and_changed_inputs_are_named(run: Run) -> None:
    run("animate", "face.png", "speech.wav", "--seed", "7", "-o", "a.mp4")
    Path("speech.wav").unlink()
    shutil.copy("face.png", "kept.png")
    Path("face.png").write_bytes(Path("face.png").read_bytes() + b"x")
    code, out, err = run("rerun", "a.mp4", "-o", "b.mp4")
    assert (code, out) == (3, "") and err.count("\n") == 1
    assert "its face 'face.png' has changed since" in err and "its sound 'speech.wav' is missing" in err
    assert not Path("b.mp4").exists()


def test_other_weights_are_told(run: Run, presets: Path) -> None:
    run("generate", "--prompt", "A man", "--duration", "0.5", "--seed", "7", "-o", "a.mp4")
    extra = presets.parent / "tiny" / "more.safetensors"
    extra.write_bytes(b"other")
    try:
        code, _, err = run("rerun", "a.mp4", "-o", "b.mp4")
    finally:
        extra.unlink()
    assert code == 5 and "other weights" in err and not Path("b.mp4").exists()


def test_a_private_clip_holds_no_words_and_no_names(run: Run) -> None:
    words = ("--voice", "speech.wav", "--voice-text", "Marmalade.", "--seed", "7")
    code, out, err = run("dub", "talk.mp4", "--prompt", "zebra", "--speech", "Hello.", *words, "--private")
    assert code == 0, err
    assert out == "outputs/dub-clip.mp4\n"
    path = Path(out.strip())
    folder = str(load_preset(os.environ["UNIAVGEN_PRESET"]).weights).encode()
    for word in (b"zebra", b"Hello", b"Marmalade", b"talk", b"speech.wav", folder):
        assert word not in path.read_bytes()
    made = record(str(path))
    assert made["ai_generated"] is True and made["voice_given"] is True and len(made["inputs"]) == 2
    assert made["left_out"] == ["prompt", "speech", "voice_text", "voice", "video", "weights"]
    code, _, err = run("rerun", str(path))
    assert code == 3 and "--private" in err and "prompt, speech" in err


@pytest.mark.parametrize(
    "change",
    [
        {"task": "paint"},
        {"task": "dub"},
        {"seed": "x"},
        {"seed": None},
        {"options": []},
        {"options": {"prompt": 3}},
        {"options": {"face": ["a"]}},
        {"options": {"glow": 1}},
        {"preset": None},
        {"base": ["nano"]},
        {"base": "../../etc/passwd"},
        {"set": {"sampling.steps": "many"}},
        {"set": 5},
        {"inputs": None},
        {"weights_sha256": 1},
        {"left_out": 4},
    ],
    ids=str,
)
def test_a_record_that_was_tampered_with_is_one_line(change: dict, run: Run) -> None:
    run("generate", "--prompt", "A man", "--duration", "0.5", "--seed", "7", "-o", "a.mp4")
    tags = provenance.to_tags({**record("a.mp4"), **change})
    write_clip("b.mp4", np.zeros((9, 64, 64, 3), np.uint8), np.zeros(9000, np.float32), 16, 24_000, tags)
    code, out, err = run("rerun", "b.mp4", "-o", "c.mp4")
    assert code in (2, 3, 5) and out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert not Path("c.mp4").exists()


@pytest.mark.parametrize("arguments", COMMANDS[:1] + COMMANDS[2:3])
def test_a_command_checks_its_request_once(
    arguments: tuple[str, ...], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = engine.request._planned
    calls = []
    monkeypatch.setattr(engine.request, "_planned", lambda *given: calls.append(1) or planned(*given))
    code, _, err = run(*arguments, "-n", "2")
    assert code == 0, err
    assert len(calls) == 1


def test_what_was_made_before_ctrl_c_is_kept_and_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    import uniavgen_cli.engine.engine as module

    sample, seen = module.sample, []

    def stop(*arguments: object) -> object:
        seen.append(1)
        if len(seen) == 3:  # the first clip took two: its person, and then itself
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(module, "sample", stop)
    code, out, err = run("generate", "--prompt", "A man", "--duration", "0.5", "-n", "3", "-o", "a.mp4")
    assert (code, out, err) == (130, "", "error: interrupted; kept a-1.mp4\n")
    assert [path.name for path in Path().glob("*.mp4") if path.name != "talk.mp4"] == ["a-1.mp4"]
