"""The four commands from the words typed to the file written, on an untrained model of the smallest size."""

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
from tiny_model import write_tiny_preset

from uniavgen_cli.cli import main
from uniavgen_cli.media.probe import probe
from uniavgen_cli.media.video import write_clip

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given")
    write_tiny_preset(folder)
    picture = np.random.default_rng(0).integers(0, 255, (96, 96, 3)).astype(np.uint8)
    picture = cv2.GaussianBlur(picture, (0, 0), 4)
    tone = (0.3 * np.sin(np.arange(36_000) / 20)).astype(np.float32)
    cv2.imwrite(str(folder / "face.png"), picture)
    soundfile.write(folder / "speech.wav", tone[:24_000], 24_000)
    write_clip(folder / "talk.mp4", np.stack([picture] * 16), tone, 16, 24_000)
    return folder


@pytest.fixture
def run(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a clip command on the tiny preset in an empty folder; {g} in it is the folder of given files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIAVGEN_PRESET", str(given / "tiny.yaml"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main([argument.replace("{g}", str(given)) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "seconds"),
    [
        (("generate", "--prompt", "A woman with red hair", "--duration", "1"), 1.0),
        (("generate", "--face", "{g}/face.png", "--speech", "Hello.", "--duration", "1.5"), 1.5),
        (("dub", "{g}/talk.mp4"), 1.0),
        (("animate", "{g}/face.png", "{g}/speech.wav"), 1.0),
        (("continue", "{g}/talk.mp4", "--duration", "0.5"), 1.5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_command_writes_a_clip_and_says_what_it_wrote(
    arguments: tuple[str, ...], seconds: float, run: Run
) -> None:
    code, out, err = run(*arguments, "--seed", "4", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["task"], answer["preset"], answer["seed"]) == (arguments[0], "tiny", 4)
    (path,) = answer["paths"]
    (clip,) = answer["clips"]
    media = probe(path)
    assert media.video is not None and media.audio is not None
    assert media.duration_s == pytest.approx(seconds, abs=0.07) == clip["seconds"]
    assert (media.video.width, media.video.height) == (clip["width"], clip["height"])
    assert Path(path).parent == Path("outputs") and Path(path).stat().st_size == clip["bytes"]
    assert {"loading", "encoding", "sampling", "decoding", "writing"} == set(clip["timings"])


def test_the_same_seed_gives_the_same_clip_and_takes_have_the_next_ones(run: Run) -> None:
    words = ("generate", "--prompt", "A man", "--duration", "0.5", "--quiet")
    assert run(*words, "--seed", "4", "-n", "2", "-o", "a.mp4") == (0, "a-1.mp4\na-2.mp4\n", "")
    assert run(*words, "--seed", "5", "-o", "b.mp4") == (0, "b.mp4\n", "")
    first, second, again = (Path(name).read_bytes() for name in ("a-1.mp4", "a-2.mp4", "b.mp4"))
    assert second == again != first


def test_a_random_seed_is_printed_and_repeats_the_clip(run: Run) -> None:
    code, out, err = run("generate", "--prompt", "A man", "--duration", "0.5")
    assert code == 0 and out == "outputs/generate-a-man.mp4\n"
    seed = err.split("seed ")[1].split(",")[0]
    made = Path(out.strip()).read_bytes()
    code, out, _ = run("generate", "--prompt", "A man", "--duration", "0.5", "--seed", seed)
    assert out == "outputs/generate-a-man-2.mp4\n"
    assert Path(out.strip()).read_bytes() == made


def test_a_clip_says_how_it_was_made(run: Run) -> None:
    run("generate", "--prompt", 'A man says "Hello."', "--steps", "1", "--seed", "4", "-o", "a.mp4")
    code, out, _ = run("info", "a.mp4", "--json")
    made = json.loads(out)["made"]
    assert code == 0 and made["ai_generated"] is True
    assert (made["task"], made["seed"], made["sampling"]["steps"]) == ("generate", 4, 1)
    assert len(made["weights_sha256"]) == 64 and made["runtime"]["device"] in ("cpu", "cuda")


def test_no_face_is_a_warning_or_with_require_face_an_error(run: Run) -> None:
    words = ("animate", "{g}/face.png", "{g}/speech.wav", "--seed", "1", "-o", "a.mp4")
    code, _, err = run(*words)
    assert code == 0 and "warning: " in err
    code, out, err = run(*words, "--overwrite", "--json")
    assert code == 0 and json.loads(out)["warnings"]
    code, out, err = run(*words, "--overwrite", "--require-face")
    assert (code, out) == (3, "") and err.startswith("error: ") and err.count("\n") == 1


def test_an_interrupted_clip_leaves_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("uniavgen_cli.engine.engine.sample", stop)
    code, out, err = run("generate", "--prompt", "A man", "--duration", "0.5")
    assert (code, out, err) == (130, "", "error: interrupted\n")
    assert list(Path().iterdir()) == []
