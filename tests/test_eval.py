"""`uniavgen eval` from the words typed to the page written: clips that are there, and nano's suite."""

import json
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import save_file
from tiny_model import write_tiny_preset

from uniavgen_cli.cli import main
from uniavgen_cli.data.dataset import sample_clip
from uniavgen_cli.data.voice import time_phonemes
from uniavgen_cli.engine.engine import Engine
from uniavgen_cli.engine.provenance import hash_file, to_tags
from uniavgen_cli.evaluation import cases, figures, instruments, parts, report, runner
from uniavgen_cli.evaluation.expression import ExpressionProbe
from uniavgen_cli.evaluation.look import LookProbe
from uniavgen_cli.evaluation.opening import OpeningReader
from uniavgen_cli.evaluation.recogniser import Recogniser, RecogniserConfig
from uniavgen_cli.evaluation.tone import ToneProbe
from uniavgen_cli.media.video import write_clip

Run = Callable[..., tuple[int, str, str]]


class Page(HTMLParser):
    """What a page holds and what it would fetch."""

    VOID = {"meta", "img", "line", "rect", "polyline", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.words = ""
        self.fetched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "poster", "action", "xlink:href"):
                self.fetched.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def assert_stands_alone(path: Path) -> Page:
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and not {"script", "link", "iframe"} & set(page.tags)
    assert page.fetched and all(source.startswith("data:image/") for source in page.fetched)
    assert "url(" not in text and "@import" not in text and "http" not in text.replace("http-equiv", "")
    return page


def write_probes(folder: Path) -> Path:
    """Untrained instruments of the true sizes: every path runs."""
    folder.mkdir()
    made = {
        "opening": OpeningReader(),
        "recogniser": Recogniser(RecogniserConfig()),
        "look": LookProbe(),
        "expression": ExpressionProbe(),
        "tone": ToneProbe(),
    }
    assert set(made) == set(instruments.INSTRUMENTS)
    for name, module in made.items():
        save_file(module.state_dict(), folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn clips, one that says it goes on from the other, and a sound."""
    folder = tmp_path_factory.mktemp("given")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_probes(folder / "probes")
    write_tiny_preset(folder)
    (folder / "clips").mkdir()
    one, other = (sample_clip(77, i, lengths=(33, 49), sizes=[(128, 128)]) for i in (0, 1))
    frames = one.draw().frames
    write_clip(folder / "clips" / "one.mp4", frames, one.samples, 16, 24_000)
    (folder / "clips" / "one.txt").write_text(one.text, encoding="utf-8")
    record = {
        "uniavgen": "0", "ai_generated": True, "task": "continue", "preset": "nano", "base": "nano",
        "voice_given": True, "left_out": [], "options": {"video": "one.mp4", "speech": other.text},
        "inputs": {"video": hash_file(folder / "clips" / "one.mp4")},
    }  # fmt: skip
    both = np.concatenate([frames, other.draw().frames])
    sound = np.concatenate([one.samples, other.samples])
    write_clip(folder / "clips" / "two <b>.mp4", both, sound, 16, 24_000, to_tags(record))
    cv2.imwrite(str(folder / "face.png"), frames[0][..., ::-1])
    soundfile.write(folder / "voice.wav", one.reference.samples, 24_000)
    return folder


@pytest.fixture
def run(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs `uniavgen eval` in an empty folder; {g} in an argument is the folder of given files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNIAVGEN_PRESET", raising=False)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["eval", *(argument.replace("{g}", str(given)) for argument in arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_two_clips_are_measured_and_the_page_stands_alone(run: Run) -> None:
    code, out, err = run("{g}/clips", "--probes", "{g}/probes", "--face", "{g}/face.png",
                         "--voice", "{g}/voice.wav", "-o", "r.html", "--json")  # fmt: skip
    assert code == 0, err
    answer = json.loads(out)
    one, two = answer["clips"]
    known = {metric.key for metric in runner.METRICS}
    for clip in (one, two):
        assert set(clip["metrics"]) | set(clip["left_out"]) == known == set(answer["metrics"])
        assert not set(clip["metrics"]) & set(clip["left_out"])
        assert clip["metrics"]["identity"] > 0.5 and -1 <= clip["metrics"]["opening_heard"] <= 1
        assert "SyncNet" in clip["left_out"]["lse_c"] and "Whisper" in clip["left_out"]["word_errors"]
    assert one["metrics"]["phoneme_errors"] > 0.3  # nothing was learnt
    assert "no continued clip" in one["left_out"]["seam_picture"]
    assert two["task"] == "continue" and "two <b>.txt" in two["left_out"]["phoneme_errors"]
    assert two["metrics"]["seam_picture"] > 5  # another person begins there
    assert -40 < one["metrics"]["loudness"] < -10 and one["metrics"]["clipped"] == 0
    assert "BS.1770" in answer["metrics"]["loudness"]["how"]

    page = assert_stands_alone(Path("r.html"))
    assert page.tags.count("h2") == 3 and page.tags.count("svg") == 2 and page.tags.count("img") == 4
    assert "two <b>.mp4" in page.words and "opening of the mouth" in page.words
    assert "Left out" in page.words and "BS.1770" in page.words


def test_without_probes_the_rest_is_measured_and_the_want_is_told(run: Run, tmp_path: Path) -> None:
    code, out, err = run("{g}/clips/one.mp4", "--probes", str(tmp_path / "none"))
    assert code == 0, err
    assert "loudness" in out and "mouth with the sound's loudness" in out and "phoneme error" not in out
    assert "phoneme error rate: the phoneme recogniser is not on disk" in err
    assert "--train-probes" in err


def test_a_sound_alone_is_measured(run: Run) -> None:
    code, out, err = run("{g}/voice.wav", "--voice", "{g}/voice.wav", "--probes", "{g}/probes", "--json")
    assert code == 0, err
    (clip,) = json.loads(out)["clips"]
    assert clip["metrics"]["voice"] == pytest.approx(1, abs=1e-3)
    assert clip["left_out"]["motion"] == "it has no picture"
    assert "whose voice it is is not known" in clip["left_out"]["emotion_heard"]


def test_what_is_broken_in_a_folder_is_left_out_and_the_rest_measured(run: Run, tmp_path: Path) -> None:
    whole = sample_clip(77, 0, lengths=(33, 49), sizes=[(128, 128)])
    (tmp_path / "mixed").mkdir()
    soundfile.write(tmp_path / "mixed" / "a.wav", whole.samples, 24_000)
    (tmp_path / "mixed" / "b.mp4").write_text("these are words")
    code, out, err = run("mixed", "--probes", "{g}/probes", "--json")
    answer = json.loads(out)
    assert code == 0 and [Path(clip["path"]).name for clip in answer["clips"]] == ["a.wav"]
    assert any("b.mp4" in warning for warning in answer["warnings"]) and "b.mp4" in err
    assert run("mixed/a.wav", "mixed/b.mp4", "--probes", "{g}/probes")[0] == 3
    (tmp_path / "mixed" / "a.wav").unlink()
    assert run("mixed", "--probes", "{g}/probes")[0] == 3


def test_a_clip_that_breaks_off_within_is_measured_as_far_as_it_goes(run: Run, given: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (33, 64, 64, 3)).astype(np.uint8)
    tone = np.sin(np.arange(49_500) / 10).astype(np.float32) / 4
    write_clip(Path("whole.mp4"), frames, tone, 16, 24_000)
    opened = runner.open_clip(Path("whole.mp4"))
    Path("whole.mp4").write_bytes(b"gone since")
    measured = runner.measure(opened, instruments.Instruments())
    assert not measured.values and set(measured.left_out) == {metric.key for metric in runner.METRICS}
    assert "whole.mp4" in measured.left_out["motion"] and "whole.mp4" in measured.left_out["loudness"]
    assert "Left out" in "".join(report.clips_body([measured]))


def test_nanos_own_voice_is_heard_whoever_is_seen(run: Run, given: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (33, 64, 64, 3)).astype(np.uint8)
    said = sample_clip(77, 0, lengths=(33, 49), sizes=[(128, 128)])
    for task, heard in (("generate", True), ("animate", False)):
        record = {
            "uniavgen": "0", "ai_generated": True, "task": task, "preset": "nano", "base": "nano",
            "voice_given": False, "left_out": [], "options": {"face": "gone.png", "speech": said.text},
            "inputs": {"face": "0"},
        }  # fmt: skip
        write_clip(Path(f"{task}.mp4"), noise, said.samples[:49_500], 16, 24_000, to_tags(record))
        code, out, err = run(f"{task}.mp4", "--probes", "{g}/probes", "--json")
        (clip,) = json.loads(out)["clips"]
        assert code == 0 and ("phoneme_errors" in clip["metrics"]) is heard, err
        assert "drawn people alone" in clip["left_out"]["identity"]


def test_photographs_are_not_held_against_drawn_people(run: Run, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (12, 64, 64, 3)).astype(np.uint8)
    write_clip(tmp_path / "noise.mp4", noise, np.zeros(18_000, np.float32), 16, 24_000)
    code, out, err = run("noise.mp4", "--face", "{g}/face.png", "--probes", "{g}/probes", "--json")
    assert code == 0, err
    (clip,) = json.loads(out)["clips"]
    assert "drawn people alone" in clip["left_out"]["identity"]
    assert clip["left_out"]["opening_sound"] == "no face was found"
    assert clip["metrics"]["flicker"] > 5


@pytest.mark.parametrize(
    ("code", "said", "arguments"),
    [
        (2, "eval needs clips", ""),
        (2, "leave one out", "{g}/clips --suite nano"),
        (2, "there is no suite", "--suite mega"),
        (2, "has no part 'sing'", "--suite nano --parts animate,sing --probes {g}/probes"),
        (2, "--photos", "--suite nano --parts photo --probes {g}/probes"),
        (3, "holds no clip", "{g}/probes"),
        (3, "no file", "missing.mp4 --probes {g}/probes"),
        (3, "is a picture", "{g}/face.png --probes {g}/probes"),
        (3, "gone.wav", "{g}/clips --voice gone.wav --probes {g}/probes"),
        (4, "doesn't end in .html", "{g}/clips -o report.pdf"),
    ],
)
def test_what_is_wrong_is_told_in_a_line(code: int, said: str, arguments: str, run: Run) -> None:
    found, out, err = run(*arguments.split())
    assert (found, out) == (code, "") and said in err and err.count("\n") == 1, err


# ---- the suite -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def suite_run(given: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A finished run of every part on an untrained model of the smallest size, and its command line."""
    folder = tmp_path_factory.mktemp("suite")
    (folder / "photos").mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (80, 80, 3)).astype(np.uint8)
    cv2.imwrite(str(folder / "photos" / "a.png"), picture)
    words = ["eval", "--suite", "nano", "--clips", "2", "--preset", str(given / "tiny.yaml")]
    words += ["--probes", str(given / "probes"), "--photos", str(folder / "photos")]
    words += ["-o", str(folder / "suite.html"), "--json", "--quiet"]
    words += ["--set", "clip.max_frames=49", "--set", "sampling.steps=1"]
    assert main(words) == 0
    return folder, words


def test_every_part_of_the_suite_is_measured(suite_run: tuple[Path, list[str]]) -> None:
    folder, _ = suite_run
    kept = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    names = {(figure["part"], figure["name"]) for figure in kept["figures"]}
    optional = {"mouth with the loudness"} | {f"- {n.replace('_', ' ')}" for n in figures.ATTRIBUTE_NAMES}
    wanted = {(figure.part, figure.name) for figure in figures.FIGURES if figure.name not in optional}
    assert wanted <= names
    values = {(figure["part"], figure["name"]): figure for figure in kept["figures"]}
    assert values["generate", "phoneme errors"]["value"] > 0.3  # nothing was learnt
    assert values["animate", "opening with the truth"]["met"] is False
    assert all(np.isfinite(figure["value"]) for figure in kept["figures"])
    assert all(len(rows) == 2 for rows in kept["rows"].values())
    assert kept["weights_sha256"] and kept["seed"] == cases.SEED and kept["threads"] >= 1

    page = assert_stands_alone(folder / "suite.html")
    assert {"animate", "generate", "dub", "photo"} <= set(page.words.split())
    assert page.tags.count("svg") >= 10 and page.tags.count("img") >= 12
    assert (folder / "suite-clips" / "animate-000.mp4").is_file()


def test_a_suite_goes_on_where_it_was(
    suite_run: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, words = suite_run
    before = json.loads((folder / "suite.json").read_text(encoding="utf-8"))

    def none(*arguments: object, **options: object) -> None:
        raise AssertionError("a clip is made anew")

    monkeypatch.setattr(Engine, "from_preset", none)
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["figures"] == before["figures"]
    cut = {**before, "rows": {**before["rows"], "codecs": {"0": before["rows"]["codecs"]["0"]}}}
    (folder / "suite.json").write_text(json.dumps(cut), encoding="utf-8")
    assert main(words) == 0  # the one that is missing needs no joint model
    after = json.loads((folder / "suite.json").read_text(encoding="utf-8"))
    assert after["rows"]["codecs"] == before["rows"]["codecs"]
    capsys.readouterr()
    assert main([*words, "--seed", "5"]) == 4
    assert "other weights, another preset or seed" in capsys.readouterr().err


def test_an_interrupted_suite_tells_what_it_has(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(parts.PARTS, "dub", stop)  # type: ignore[arg-type]
    words = ["eval", "--suite", "nano", "--clips", "2", "--preset", str(given / "tiny.yaml"), "--quiet"]
    words += ["--probes", str(given / "probes"), "--parts", "codecs,dub", "-o", str(tmp_path / "s.html")]
    assert main([*words, "--set", "clip.max_frames=49"]) == 130
    told = capsys.readouterr()
    assert "picture through the VAE" in told.out and "the same command goes on" in told.err
    assert (tmp_path / "s.html").is_file()


def test_cases_are_unseen_others_and_the_same_again(given: Path) -> None:
    from uniavgen_cli.config import load_preset

    preset = load_preset("nano", ["clip.max_frames=49"])
    one, two = cases.cases(preset, 3, 2)
    again = next(cases.cases(preset, 3, 2))
    assert one.other is two.clip and two.other is one.clip
    assert "emotion" in one.caption.attributes and "emotion" not in one.calm_caption.attributes
    assert one.caption == again.caption
    np.testing.assert_array_equal(one.clip.samples, again.clip.samples)
    voices, sound = one.voices
    assert len(voices) == cases.NUM_VOICES and len(sound) > 10_000
    assert len(one.unbroken_other[0]) == len(one.clip.samples)
    assert abs(one.unbroken_other[0][:4800]).max() > 0.01  # no silence at the start
    assert time_phonemes(one.next_text(2.0))[-1].end_s < 1.6
    assert time_phonemes(one.next_text(0.1))[-1].end_s < 1.6  # none is so short


# ---- the best of some takes ------------------------------------------------------------------------------


def test_the_best_of_some_seeds_is_written_with_the_scores_of_all(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds 4 to 6 scored as planned: 5 is best, and its bytes are those that seed 5 alone gives."""
    from uniavgen_cli.evaluation import takes

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIAVGEN_PRESET", str(given / "tiny.yaml"))
    planned = {4: 0.2, 5: 0.7, 6: -0.1}
    monkeypatch.setattr(
        takes, "score_take", lambda clip, read: {"score": planned[clip.plan.request.seed], "clipped": 0.0}
    )
    words = ["generate", "--prompt", "A man", "--duration", "0.5"]
    assert main([*words, "--seed", "4", "--best-of", "3", "-o", "best.mp4", "--json"]) == 0
    (clip,) = json.loads(capsys.readouterr().out)["clips"]
    assert clip["seed"] == 5 and [take["seed"] for take in clip["best_of"]] == [4, 5, 6]
    assert [take["score"] for take in clip["best_of"]] == [0.2, 0.7, -0.1]
    assert main([*words, "--seed", "5", "-o", "alone.mp4", "--json"]) == 0
    (alone,) = json.loads(capsys.readouterr().out)["clips"]
    assert "best_of" not in alone
    assert Path("best.mp4").read_bytes() == Path("alone.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.mp4", "best.mp4"]


def test_a_take_is_scored_by_its_mouth_its_words_and_its_clipping(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The drawn truth beats the same with its mouth late, with other words, and with its sound clipped."""
    from dataclasses import dataclass

    from uniavgen_cli.config import load_preset
    from uniavgen_cli.engine.request import Request, check
    from uniavgen_cli.evaluation import synchrony, takes

    spoken = sample_clip(78, 0, lengths=(49,), sizes=[(128, 128)])
    drawn = spoken.draw()
    planned = check(Request(task="generate", speech=spoken.text), load_preset("nano"))

    @dataclass
    class Reel:
        pictures: np.ndarray
        samples: np.ndarray

        def frames(self) -> Iterator[np.ndarray]:
            yield from self.pictures

        def sound(self) -> Iterator[np.ndarray]:
            yield from np.array_split(self.samples, 3)

    @dataclass
    class Made:
        pictures: np.ndarray
        samples: np.ndarray
        plan: object = planned
        fps: int = 16
        sample_rate: int = 24_000

        @property
        def reel(self) -> Reel:
            return Reel(self.pictures, self.samples)

        @property
        def num_frames(self) -> int:
            return len(self.pictures)

    class Reader:
        def read(self, frames: np.ndarray) -> np.ndarray:
            """The true opening, found by the frame's own bytes."""
            known = {frame.tobytes(): value for frame, value in zip(drawn.frames, drawn.opening, strict=True)}
            return np.array([known[frame.tobytes()] for frame in frames])

    read = instruments.Instruments(opening=Reader())  # type: ignore[arg-type]
    true = takes.score_take(Made(drawn.frames, spoken.samples), read)
    assert true["score"] == true["opening"] > 0.5 and true["clipped"] == 0
    late = takes.score_take(Made(np.roll(drawn.frames, 5, 0), spoken.samples), read)
    assert late["score"] < true["score"] - 0.2
    clipped = takes.score_take(Made(drawn.frames, np.clip(20 * spoken.samples, -1, 1)), read)
    assert clipped["clipped"] > 0.05 and clipped["score"] < true["score"] - 0.3

    faceless = takes.score_take(
        Made(np.zeros((49, 64, 64, 3), np.uint8), spoken.samples), instruments.Instruments()
    )
    assert faceless["score"] == faceless["opening"] == -1

    monkeypatch.setattr(synchrony, "heard_opening", lambda s, n, fps, r: drawn.opening)
    monkeypatch.setattr(takes, "phoneme_error_rate", lambda samples, timed, recogniser: 0.25)
    hearing = instruments.Instruments(opening=Reader(), recogniser=Recogniser(RecogniserConfig()))  # type: ignore[arg-type]
    heard = takes.score_take(Made(drawn.frames, spoken.samples), hearing)
    assert heard["opening"] == pytest.approx(1) and heard["score"] == pytest.approx(0.75)
