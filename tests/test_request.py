"""Requests become plans, or one clear line, before torch is loaded."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import soundfile

from uniavgen_cli.config import Preset, load_preset
from uniavgen_cli.engine.request import Request, check, split_prompt
from uniavgen_cli.engine.speech import MAX_SPEED_UP
from uniavgen_cli.engine.tasks import TASKS
from uniavgen_cli.errors import InputError, UsageError
from uniavgen_cli.media.video import write_clip


@pytest.fixture(scope="module")
def nano() -> Preset:
    return load_preset("nano")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "face.png"
    cv2.imwrite(str(path), np.full((480, 360, 3), 128, np.uint8))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 s at 25 fps, 160x120, with sound."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    frames = np.random.default_rng(0).integers(0, 255, (75, 120, 160, 3), dtype=np.uint8)
    return write_clip(path, frames, np.sin(np.arange(72_000) / 20).astype(np.float32) * 0.3, 25, 24_000)


def sound(path: Path, seconds: float) -> Path:
    soundfile.write(path, 0.1 * np.sin(np.arange(int(16_000 * seconds)) / 9), 16_000)
    return path


@pytest.mark.parametrize(
    ("prompt", "caption", "speech"),
    [
        ('A woman with red hair says "Good morning."', "A woman with red hair says", "Good morning."),
        ("A man says “Hello there” and smiles", "A man says and smiles", "Hello there"),
        ('"One." Then "two."', "Then", "One. two."),
        ("It's a man's face", "It's a man's face", None),
    ],
)
def test_quoted_words_are_the_speech(prompt: str, caption: str, speech: str | None) -> None:
    assert split_prompt(prompt) == (caption, speech)


def test_length_follows_from_the_speech(nano: Preset) -> None:
    short = check(Request(task="generate", prompt='A man says "Hi."'), nano)
    long = check(Request(task="generate", prompt='A man says "Hello, how have you been today?"'), nano)
    assert short.duration_s < long.duration_s
    assert long.phonemes[-1].end_s < long.duration_s
    assert long.spec.num_frames % 4 == 1 and long.spec.num_frames - long.num_frames < 4


def test_given_speech_wins_over_quotes(nano: Preset) -> None:
    plan = check(Request(task="generate", prompt='says "one"', speech="two words"), nano)
    assert plan.speech == "two words" and plan.caption == "says"


def test_duration_pads_and_presses(nano: Preset) -> None:
    text = 'A man says "I would like a cup of tea."'
    free = check(Request(task="generate", prompt=text), nano)
    assert check(Request(task="generate", prompt=text, duration_s=4.5), nano).num_frames == 72
    spoken_s = free.phonemes[-1].end_s - free.phonemes[0].start_s
    pressed = check(Request(task="generate", prompt=text, duration_s=0.85 * spoken_s + 0.25), nano)
    faster = pressed.phonemes[-1].end_s - pressed.phonemes[0].start_s
    assert spoken_s / MAX_SPEED_UP < faster < spoken_s
    assert pressed.phonemes[-1].end_s <= pressed.duration_s
    with pytest.raises(InputError, match=r"times its pace \(at most 1.3\)"):
        check(Request(task="generate", prompt=text, duration_s=0.5 * spoken_s), nano)


def test_what_one_window_does_not_hold_is_made_in_several(
    nano: Preset, tmp_path: Path, picture: Path, video: Path
) -> None:
    plan = check(Request(task="animate", face=picture, sound=sound(tmp_path / "s.wav", 7)), nano)
    assert plan.num_frames == 112 and [window.end for window in plan.windows] == [81, 112]
    assert plan.row_of(0) is TASKS["animate"] and plan.row_of(1) is TASKS["animate-on"]
    plan = check(Request(task="generate", prompt="a man", duration_s=60, voice=video), nano)
    assert plan.num_frames == 960 and len(plan.windows) == 21
    assert plan.row_of(0) is TASKS["generate-voice"] and plan.row_of(20) is TASKS["continue"]
    plan = check(Request(task="continue", video=video, duration_s=4), nano)
    assert plan.windows[0].first_new == 37 and plan.windows[-1].end == plan.num_frames == 37 + 64


def test_long_speech_is_shared_out_and_sets_the_length(nano: Preset) -> None:
    text = "We open at nine, and we close at five. Please leave your coats by the door. " * 3
    plan = check(Request(task="generate", prompt="a man", speech=text), nano)
    assert plan.duration_s == pytest.approx(plan.spoken.end_s + 0.3, abs=1 / 16)
    said = [plan.said_in(window) for window in plan.windows]
    assert len(said) > 3 and said[0].text.startswith("We open at nine") and said[-1].text.endswith("door.")
    pauses = plan.spoken.pauses()
    inside = [any(a <= w.end / 16 <= b for a, b in pauses) for w in plan.windows[:-1]]
    assert sum(inside) > len(inside) / 2  # most borders are in pauses


def test_only_the_limit_on_seconds_is_left(nano: Preset, tmp_path: Path, picture: Path) -> None:
    endless = Request(task="generate", prompt="a man", duration_s=4000)
    with pytest.raises(InputError, match="--duration has 4,000 seconds, and at most 3,600 are taken"):
        check(endless, nano)
    assert len(check(replace(endless, unlimited=True), nano).windows) > 1000
    with pytest.raises(InputError, match="the speech has .* seconds, and at most 3,600 are taken"):
        check(Request(task="generate", prompt="a man", speech="many words and more " * 4900), nano)


def test_a_text_too_long_for_a_dub_is_refused_with_the_figures(nano: Preset, video: Path) -> None:
    with pytest.raises(InputError, match=r"takes [\d.]+ s and there is room for 2.75 s, .* \(at most 1.3\)"):
        check(Request(task="dub", video=video, speech="Far too many words to say. " * 4), nano)


def test_animate_keeps_the_sounds_length_and_the_pictures_shape(
    nano: Preset, tmp_path: Path, picture: Path
) -> None:
    plan = check(Request(task="animate", face=picture, sound=sound(tmp_path / "s.wav", 1.3)), nano)
    assert plan.num_frames == 21 and plan.row is TASKS["animate"] and not plan.phonemes
    assert (plan.spec.height, plan.spec.width) == (192, 128)
    assert plan.out_height / plan.out_width == pytest.approx(480 / 360, rel=0.02)


def test_dub_takes_the_videos_own_voice(nano: Preset, video: Path) -> None:
    plan = check(Request(task="dub", video=video, speech="Good morning."), nano)
    assert plan.voice == video and plan.row is TASKS["dub-voice"]
    assert plan.duration_s == pytest.approx(3.0, abs=1 / 16)


def test_continue_reads_whole_latent_frames_of_the_end(nano: Preset, video: Path) -> None:
    plan = check(Request(task="continue", video=video, speech="And so on."), nano)
    assert plan.context_frames == 37 and plan.context_start_s == pytest.approx(3 - 37 / 16, abs=0.02)
    assert plan.phonemes[0].start_s > 37 / 16


def test_a_preset_that_needs_a_face_says_so() -> None:
    with pytest.raises(UsageError, match="makes a clip from a picture"):
        check(Request(task="generate", prompt="a man"), load_preset("uniavgen"))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"steps": 0}, "--steps 0"),
        ({"duration_s": -1.0}, "--duration -1"),
        ({"size": 16}, "--size 16"),
        ({"size": (100, 128)}, "--size 128x100"),
    ],
)
def test_impossible_options(nano: Preset, fields: dict, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        check(replace(Request(task="generate", prompt="a man"), **fields), nano)


@pytest.mark.parametrize("speech", ["今天天气很好", "...", "Привет"])
def test_speech_that_cannot_be_said(nano: Preset, speech: str) -> None:
    with pytest.raises(InputError):
        check(Request(task="generate", prompt="a man", speech=speech), nano)


def test_checking_needs_no_torch() -> None:
    code = (
        "import sys; from uniavgen_cli.config import load_preset;"
        "from uniavgen_cli.engine.request import Request, check;"
        "check(Request(task='generate', prompt='a man says \"hello\"'), load_preset('nano'));"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_silence_is_nobodys_voice(nano: Preset, tmp_path: Path) -> None:
    frames = np.zeros((50, 64, 64, 3), np.uint8)
    silent = write_clip(tmp_path / "silent.mp4", frames, np.zeros(48_000, np.float32), 25, 24_000)
    plan = check(Request(task="dub", video=silent, speech="Hello."), nano)
    assert plan.media is not None and plan.media.audio is not None
    assert plan.voice is None and plan.row == TASKS["dub"]
    with pytest.raises(InputError, match="silent.mp4 is silent"):
        check(Request(task="generate", speech="Hello.", voice=silent), nano)
