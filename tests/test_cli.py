"""The command line: what it offers, what it refuses before anything heavy loads, and how it ends."""

import hashlib
import inspect
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from typer.main import get_command

from uniavgen_cli import __version__
from uniavgen_cli.cli import app, main
from uniavgen_cli.commands import _clip, _options, _output
from uniavgen_cli.config import load_preset
from uniavgen_cli.engine import provenance
from uniavgen_cli.engine.request import Request, check
from uniavgen_cli.engine.weights import weights_sha256
from uniavgen_cli.errors import InputError, UsageError
from uniavgen_cli.media.video import write_clip

COMMON = {
    "output", "overwrite", "preset", "seed", "steps", "size", "takes", "face_index", "require_face", "set",
    "json", "quiet", "attention", "private", "unlimited", "lora", "best_of",
}  # fmt: skip
OPTIONS = {  # the pinned list: a new flag needs a reason, the rest go by --set
    "generate": COMMON | {"prompt", "speech", "face", "voice", "voice_text", "language", "duration"},
    "dub": COMMON
    | {"video", "prompt", "speech", "voice", "voice_text", "language", "keep_sound", "subtitles"},
    "animate": COMMON | {"face", "sound", "prompt"},
    "continue": COMMON | {"clip", "prompt", "speech", "voice", "voice_text", "language", "duration"},
    "info": {"file", "unlimited", "json"},
    "batch": {
        "jobs", "output", "workers", "fail_fast", "overwrite", "preset", "seed", "steps", "size", "private",
        "unlimited", "set", "json", "quiet",
    },
    "rerun": {"file", "output", "overwrite", "json", "quiet"},
    "doctor": {"preset", "set", "json"},
    "plan": {"preset", "size", "duration", "gpu_memory", "task", "set", "json"},
    "prepare": {"folder", "output", "transcripts", "preset", "unlimited", "set", "json", "quiet"},
    "eval": {
        "clips", "suite", "parts", "count", "seed", "photos", "preset", "set", "face", "voice", "probes",
        "train_probes", "output", "overwrite", "json", "quiet",
    },
    "train": {"preset", "data", "lora", "output", "set", "json", "quiet"},
}  # fmt: skip
SUBCOMMANDS = {
    "presets": {"list", "show"},
    "weights": {"list", "pull", "verify", "add", "remove", "path"},
    "data": {"preview"},
}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real files: good ones, and one of each kind that is wrong."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (96, 96, 3)).astype(np.uint8)
    cv2.imwrite(str(folder / "face.png"), picture)
    tone = (0.3 * np.sin(np.arange(48_000) / 20)).astype(np.float32)
    soundfile.write(folder / "speech.wav", tone[:24_000], 24_000)
    write_clip(folder / "talk.mp4", np.stack([picture] * 20), tone, 16, 24_000)
    (folder / "empty.mp4").touch()
    (folder / "empty.png").touch()
    (folder / "notes.mp4").write_text("these are only words, whatever the name says\n" * 50)
    whole = (folder / "talk.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    (folder / "words.txt").write_text("Good morning to you.\n", encoding="utf-8")
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    return folder


@pytest.fixture
def run(
    tmp_path: Path, media: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs one command line in an empty folder; {m} in an argument is the folder of media."""
    monkeypatch.chdir(tmp_path)
    for name in ("UNIAVGEN_PRESET", "UNIAVGEN_WEIGHTS", "UNIAVGEN_DEBUG"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main([argument.replace("{m}", str(media)) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def commands() -> dict[str, object]:
    return dict(get_command(app).commands)  # type: ignore[attr-defined]


def test_the_commands_and_their_flags_are_pinned() -> None:
    found = commands()
    assert set(found) == set(OPTIONS) | set(SUBCOMMANDS)
    for name, options in OPTIONS.items():
        assert {parameter.name for parameter in found[name].params} - {"help"} == options, name  # type: ignore[attr-defined]
    for name, subcommands in SUBCOMMANDS.items():
        assert set(found[name].commands) == subcommands  # type: ignore[attr-defined]


def test_every_commands_help_has_two_examples_that_parse(run: Callable[..., tuple[int, str, str]]) -> None:
    names = [[name] for name in OPTIONS] + [
        [group, name] for group, names in SUBCOMMANDS.items() for name in names
    ]
    for name in names:
        code, out, _ = run(*name, "--help")
        examples = [line.strip() for line in out.splitlines() if line.startswith("    uniavgen ")]
        assert code == 0 and len(examples) == 2, name
        assert all(example.startswith("uniavgen " + " ".join(name)) for example in examples)


def test_version_and_bare_call(run: Callable[..., tuple[int, str, str]]) -> None:
    assert run("--version") == (0, f"uniavgen {__version__}\n", "")
    code, out, _ = run()
    assert code == 0 and "generate" in out


BAD = [  # exit code, what the line says, the command line
    (2, "No such command", "paint"),
    (2, "No such option", "generate --sped 3"),
    (2, "Missing argument 'VIDEO'", "dub"),
    (2, "Missing argument 'SOUND'", "animate {m}/face.png"),
    (2, "Missing command", "presets"),
    (2, "--seed", "generate --prompt x --seed minus"),
    (2, "--takes", "generate --prompt x -n 0"),
    (2, "needs --prompt, --speech or --face", "generate"),
    (2, "unknown preset 'nanu'; did you mean nano", "generate --prompt x --preset nanu"),
    (2, "did you mean sampling.steps", "generate --prompt x --set sampling.stepp=3"),
    (2, "runtime.attention", "generate --prompt x --attention quick"),
    (2, "is no size", "generate --prompt x --size large"),
    (2, "--size", "generate --prompt x --size 3"),
    (2, "--size", "generate --prompt x --size 100x128"),
    (2, "--steps", "generate --prompt x --steps 0"),
    (2, "--duration", "generate --prompt x --duration -1"),
    (2, "--voice-text", "generate --prompt x --voice-text hello"),
    (2, "add --face FILE", "generate --preset uniavgen --prompt x --speech hello"),
    (3, "missing.mp4", "dub {m}/missing.mp4"),
    (3, "empty.mp4", "dub {m}/empty.mp4"),
    (3, "cut.mp4", "dub {m}/cut.mp4"),
    (3, "notes.mp4", "dub {m}/notes.mp4"),
    (3, "speech.wav", "dub {m}/speech.wav"),
    (3, "face.png", "continue {m}/face.png --duration 1"),
    (3, "empty.png", "animate {m}/empty.png {m}/speech.wav"),
    (3, "face.png", "animate {m}/face.png {m}/face.png"),
    (3, "missing.wav", "generate --prompt x --voice {m}/missing.wav"),
    (3, "nothing.srt", "dub {m}/talk.mp4 --subtitles {m}/nothing.srt"),
    (3, "holds no words", "generate --speech ''"),
    (3, "No such file", "generate --speech @{m}/nothing.txt"),
    (3, "not UTF-8", "generate --speech @{m}/latin.txt"),
    (3, "", "generate --speech 今天天气很好"),
    (2, "--language fr is not known", "generate --speech Hello. --language fr"),
    (2, "speaks English alone", "generate --speech Hello. --language zh"),
    (3, "", "generate --speech ..."),
    (3, "--duration", "generate --prompt x --duration 4000"),
    (4, "exist", "generate --prompt x -o missing/clip.mp4"),
    (4, "exists", "generate --prompt x -o {m}/talk.mp4"),
    (4, "also the input", "dub {m}/talk.mp4 -o {m}/talk.mp4 --overwrite"),
    (4, "folder", "generate --prompt x -o {m}"),
    (4, "clip.txt", "generate --prompt x -o clip.txt"),
    (4, "written", "generate --prompt x -o /proc/clip.mp4"),
    (5, "not installed", "animate --preset uniavgen {m}/face.png {m}/speech.wav"),
    (5, "not installed", "weights path uniavgen"),
    (3, "missing.mp4", "info {m}/missing.mp4"),
    (3, "missing.mp4", "rerun {m}/missing.mp4"),
    (3, "missing.yaml", "batch {m}/missing.yaml -o out"),
    (3, "doesn't end in", "batch {m}/talk.mp4 -o out"),
    (2, "Missing option", "batch {m}/missing.yaml"),
    (3, "does not say how it was made", "rerun {m}/talk.mp4"),
    (2, "--duration nan", "generate --prompt x --duration nan"),
    (2, "no recipe", "train --preset nano"),
]


@pytest.mark.parametrize(("code", "said", "line"), BAD, ids=[line for _, _, line in BAD])
def test_bad_input_ends_in_one_line_and_its_code(
    code: int, said: str, line: str, run: Callable[..., tuple[int, str, str]], media: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in media.iterdir()}
    ended, out, err = run(*(word.strip("'") for word in line.split()))
    assert ended == code, err
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert said in err
    assert list(tmp_path.iterdir()) == []  # nothing written
    assert {path: path.stat().st_mtime_ns for path in media.iterdir()} == before


def test_bad_input_is_found_before_torch_loads(media: Path) -> None:
    code = (
        "import sys; from uniavgen_cli.cli import main; code = main(sys.argv[1:]);"
        "sys.exit(99 if 'torch' in sys.modules else code)"
    )
    for arguments, expected in (
        (["dub", str(media / "cut.mp4")], 3),
        (["generate", "--prompt", "x", "--speech", "hello", "-o", str(media / "talk.mp4")], 4),
        (["generate", "--preset", "uniavgen", "--face", str(media / "face.png"), "--speech", "hello"], 5),
        (["animate", str(media / "face.png"), str(media / "speech.wav"), "--require-face"], 3),
        (["dub", str(media / "talk.mp4"), "--require-face"], 3),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == expected, done.stderr


def test_a_defect_is_one_line_too_and_a_traceback_on_demand(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> list[str]:
        raise KeyError("lost")

    monkeypatch.setattr("uniavgen_cli.config.preset_names", broken)
    code, _, err = run("presets", "list")
    assert code == 1 and err.count("\n") == 1 and "UNIAVGEN_DEBUG=1" in err
    monkeypatch.setenv("UNIAVGEN_DEBUG", "1")
    code, _, err = run("presets", "list")
    assert code == 1 and "Traceback" in err and err.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("raised", "code"), [(KeyboardInterrupt(), 130), (MemoryError(), 6), (OSError(28, "full"), 4)]
)
def test_other_ends_have_their_codes(
    raised: BaseException,
    code: int,
    run: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop() -> list[str]:
        raise raised

    monkeypatch.setattr("uniavgen_cli.config.preset_names", stop)
    ended, _, err = run("presets", "list")
    assert ended == code and err.startswith("error: ")


def test_speech_comes_from_text_file_or_standard_input(media: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _clip.read_speech(None) is None
    assert _clip.read_speech(" Hello. ") == "Hello."
    assert _clip.read_speech(f"@{media / 'words.txt'}") == "Good morning to you."
    monkeypatch.setattr("sys.stdin", io.StringIO("From a pipe.\n"))
    assert _clip.read_speech("-") == "From a pipe."
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(InputError, match="standard input holds no words"):
        _clip.read_speech("-")


def test_sizes_are_a_short_side_or_width_by_height() -> None:
    assert [_clip.parse_size(text) for text in (None, "256", "384x256")] == [None, 256, (256, 384)]
    for wrong in ("", "x", "12.5", "128x", "-128", "1e3"):
        with pytest.raises(UsageError):
            _clip.parse_size(wrong)


def common(**changed: object) -> _options.Common:
    values = {name: None for name in _options.Common.__dataclass_fields__}
    return _options.Common.of({**values, "takes": 1, "overwrite": False, **changed})


def test_default_names_come_from_the_task_and_never_hit_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    request = Request(
        task="generate", prompt='A woman, smiling, says "Hi!" and waves to everyone in the room'
    )
    first = Path("outputs/generate-a-woman-smiling-says-hi-and-waves-to.mp4")
    assert _clip.output_paths(request, common()) == [first]
    assert not Path("outputs").exists()
    first.parent.mkdir()
    first.touch()
    names = [path.stem.removeprefix(first.stem) for path in _clip.output_paths(request, common(takes=2))]
    assert names == ["-2", "-3"]
    assert _clip.output_paths(request, common(overwrite=True)) == [first]


def test_takes_with_a_name_are_numbered(tmp_path: Path) -> None:
    paths = _clip.output_paths(Request(task="generate"), common(output=tmp_path / "a.b.mp4", takes=2))
    assert [path.name for path in paths] == ["a.b-1.mp4", "a.b-2.mp4"]


def test_info_tells_how_a_clip_was_made(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    preset = load_preset("nano", ["sampling.shift=3"])
    face = Path("a b.png")
    cv2.imwrite(str(face), np.zeros((96, 96, 3), np.uint8))
    request = Request(task="generate", prompt="“Hello”, he says; ok=1 \\ ü", seed=5, face=face, steps=9)
    record = provenance.build(
        check(request, preset),
        inputs=provenance.hash_inputs(request),
        weights_hash="ab" * 32,
        runtime={"device": "cpu"},
    )
    for name in ("clip.mp4", "clip.mkv", "clip.webm"):
        path = tmp_path / name
        frames = np.zeros((5, 32, 32, 3), np.uint8)
        write_clip(path, frames, np.zeros(8000, np.float32), 16, 24_000, metadata=provenance.to_tags(record))
        code, out, _ = run("info", name, "--json")
        made = json.loads(out)["made"]
        assert code == 0 and made == record, name
    assert made["seed"] == 5 and made["sampling"]["steps"] == 9 and made["set"] == {"sampling.shift": 3.0}
    assert made["options"]["face"] == "a b.png" and made["ai_generated"] is True
    assert made["inputs"]["face"]["sha256"] == hashlib.sha256(face.read_bytes()).hexdigest()
    assert made["voice_given"] is False
    code, out, _ = run("info", "clip.mp4")
    assert "ok=1 \\ ü" in out and "generate" in out and "32x32" in out


def test_info_of_any_other_file(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run("info", "{m}/speech.wav")
    assert code == 0 and "24000 Hz" in out and "not by uniavgen" in out
    code, out, _ = run("info", "{m}/face.png", "--json")
    assert json.loads(out)["media"]["image"] == {"width": 96, "height": 96}


def test_the_weights_hash_follows_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"1")
    first = weights_sha256(tmp_path)
    assert weights_sha256(tmp_path) == first
    (tmp_path / "a.safetensors").write_bytes(b"2")
    second = weights_sha256(tmp_path)
    (tmp_path / "a.safetensors").rename(tmp_path / "b.safetensors")
    assert len({first, second, weights_sha256(tmp_path)}) == 3


def test_lists_are_data_on_standard_output(run: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = run("presets", "list", "--json")
    assert code == 0 and err == "" and json.loads(out)["nano"]
    code, out, _ = run("presets", "show", "nano-vae", "--json", "--set", "train.clips=9")
    assert json.loads(out)["train"]["clips"] == 9
    code, out, _ = run("weights", "list", "--json")
    assert {row["name"]: row["installed"] for row in json.loads(out)["weights"]}["uniavgen"] is False


def test_data_preview_writes_a_sheet_and_a_clip(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    arguments = ("data", "preview", "--count", "3", "--seed", "1", "-o", "look", "--json")
    code, out, err = run(*arguments)
    assert code == 0, err
    sheet, *_, clip = (tmp_path / path for path in json.loads(out)["paths"])
    assert cv2.imread(str(sheet)).shape == (256, 768, 3)
    assert clip.suffix == ".mp4" and clip.stat().st_size > 10_000
    code, _, err = run(*arguments)
    assert code == 4 and "--overwrite" in err


def train_face(steps: int) -> list[str]:
    settings = (f"train.steps={steps}", "train.people=3", "train.batch_size=2")
    return ["train", "--preset", "nano-face", "-o", "run", *(word for s in settings for word in ("--set", s))]


def test_train_makes_the_part_and_a_finished_run_stays(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, out, err = run(*train_face(20), "--json")
    assert code == 0, err
    assert json.loads(out) == {"preset": "nano-face", "path": "run", "steps": 20}
    assert "face 20/20" in err and "steps/s" in err
    made = (tmp_path / "run" / "face_detector.safetensors").read_bytes()
    assert run(*train_face(20), "--quiet") == (0, "run\n", "")
    assert (tmp_path / "run" / "face_detector.safetensors").read_bytes() == made


def test_ctrl_c_saves_and_the_same_command_goes_on(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "uniavgen_cli", *train_face(100_000)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "face 20/100000" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    *_, last = process.stderr.read().splitlines()
    assert process.wait() == 130
    assert last.startswith("error: stopped, and saved in run")
    code, _, err = run(*train_face(20))  # fewer than were made: nothing is left to do
    assert code == 0 and "face 20/" not in err


def test_a_recipe_no_part_understands_is_refused(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for recipe, said in (
        ("part: nose", "train.part 'nose'"),
        ("part: face\n  stepz: 3", "does not fit the part face"),
    ):
        Path("mine.yaml").write_text(f"extends: nano\nabout: mine\ntrain:\n  {recipe}\n")
        code, _, err = run("train", "--preset", "mine.yaml")
        assert code == 2 and said in err and err.count("\n") == 1


def test_progress_is_silent_when_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with _output.progress(quiet=False) as progress:
        progress("sampling", 0, 2)
        progress("sampling", 2, 2)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_progress_says_which_window_is_made_in_one_bar(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_output, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("FORCE_COLOR", "1")  # as where a person watches
    with _output.progress(quiet=False) as progress:
        progress("sampling, window 1 of 9", 0, 18)
        progress("sampling, window 2 of 9", 2, 18)
    last = capsys.readouterr().err.rpartition("window")[2]
    assert "2 of 9" in last and "2/18" in last and last.count("/18") == 1


def test_the_four_commands_name_their_common_options_alike() -> None:
    from uniavgen_cli.commands import animate, continue_, dub, generate

    for command in (generate.generate, dub.dub, animate.animate, continue_.continue_):
        parameters = inspect.signature(command).parameters
        assert set(_options.Common.__dataclass_fields__) <= set(parameters)
