"""Clips of several windows on an untrained, tiny model: continuous, repeatable, and taken up again."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import soundfile
import torch
from small_disk import small_disk
from tiny_model import write_tiny_preset

from uniavgen_cli.cli import main
from uniavgen_cli.data.dataset import sample_clip
from uniavgen_cli.diffusion.sampler import State
from uniavgen_cli.engine import engine as engine_module
from uniavgen_cli.engine.conditions import Prepared, Preparer
from uniavgen_cli.engine.drift import loudness
from uniavgen_cli.engine.engine import Clip, Engine
from uniavgen_cli.engine.reel import _quietest, _same_level, detail, joined
from uniavgen_cli.engine.request import Plan, Request, check
from uniavgen_cli.errors import OutputError
from uniavgen_cli.media.probe import probe
from uniavgen_cli.media.video import write_clip

RATE = 24_000
WORDS = "Good morning, and welcome to the house. We open at nine."


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.from_preset(str(write_tiny_preset(tmp_path_factory.mktemp("engine"))))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """face.png, and speech.wav and talk.mp4 of four seconds: three windows of the tiny model."""
    folder = tmp_path_factory.mktemp("given")
    clip = sample_clip(11, 4, lengths=(81,), sizes=((64, 64),))
    frames = clip.draw().frames[:64]
    cv2.imwrite(str(folder / "face.png"), frames[0][:, :, ::-1])
    soundfile.write(folder / "speech.wav", clip.samples[: 4 * RATE], RATE)
    write_clip(folder / "talk.mp4", frames, clip.samples[: 4 * RATE], 16, RATE)
    return folder


def requests(given: Path) -> dict[str, Request]:
    return {
        "generate": Request(task="generate", prompt="a man", speech=WORDS, seed=3),
        "generate-voice": Request(
            task="generate", prompt="a man", speech=WORDS, voice=given / "speech.wav", duration_s=5.0
        ),
        "animate": Request(task="animate", face=given / "face.png", sound=given / "speech.wav"),
        "dub": Request(task="dub", video=given / "talk.mp4", speech="Good morning, and welcome."),
        "continue": Request(task="continue", video=given / "talk.mp4", speech=WORDS),
    }


def written(clip: Clip, path: Path) -> bytes:
    return clip.save(path).read_bytes()


@pytest.mark.parametrize("task", ["generate", "generate-voice", "animate", "dub", "continue"])
def test_every_task_makes_clips_of_any_length(task: str, engine: Engine, given: Path, tmp_path: Path) -> None:
    clip = engine.run(requests(given)[task])
    windows = clip.plan.windows
    assert len(windows) > 2 and clip.record["windows"] == len(windows)
    path = clip.save(tmp_path / "a.mkv")
    media = probe(path)
    assert media.video is not None and media.audio is not None
    before = 4.0 if task == "continue" else 0.0
    assert media.duration_s == pytest.approx(before + clip.duration_s, abs=0.07)
    assert clip.frames.shape == (clip.num_frames, clip.height, clip.width, 3)
    assert len(clip.samples) == round(clip.duration_s * RATE)
    report = clip.reel.drift.report()
    assert sum(row["seconds"] for row in report) == pytest.approx(clip.duration_s, abs=0.01)
    assert (report[-1]["colour_lab"] is None) == (task == "dub")
    again = engine.run(requests(given)[task])
    assert written(again, tmp_path / "b.mkv") == path.read_bytes()


def test_a_windows_start_is_what_the_one_before_made(engine: Engine, given: Path) -> None:
    """All latents but one and all mels are carried over; that one is the same frame, encoded alone."""
    clip = engine.run(requests(given)["generate"])
    store = clip.store
    assert store is not None
    spec = clip.plan.spec
    for index, window in enumerate(clip.plan.windows[1:], start=1):
        before = clip.plan.windows[index - 1]
        place, tokens = window.latents_after(before), window.tokens_after(before, spec.fps, spec.mel_hz)
        kept = store[index].video[:, :, 1 : window.kept_latents]
        assert torch.equal(kept, store[index - 1].video[:, :, place + 1 : place + window.kept_latents])
        sound = store[index - 1].audio[:, tokens : tokens + 81]
        assert torch.equal(store[index].audio[:, : sound.shape[1]], sound) and sound.shape[1] == 81
        with torch.inference_mode():
            shown = engine.video_vae.decode(store[index - 1].video)[:, :, 4 * place]
            encoded = engine.video_vae.encode(shown[:, :, None])
        assert torch.allclose(store[index].video[:, :, :1], encoded, atol=2e-3)


def test_each_window_of_animate_hears_its_own_part(engine: Engine, given: Path) -> None:
    plan = check(requests(given)["animate"], engine.preset)
    whole = check(replace(plan.request, seed=1), engine.preset)
    with torch.inference_mode(), Preparer(whole, engine.video_vae, engine.captions) as preparer:
        first = preparer.window(0).given.audio
        state = engine_module.State(torch.zeros(1, 4, 9, 4, 4), torch.zeros(1, 206, 80))
        second = preparer.window(1, state, state).given
    assert first is not None and second.audio is not None and second.video is not None
    # the mels of the 81 tokens that both windows hold, whatever lies around them
    assert torch.allclose(first[:, 125:206], second.audio[:, :81], atol=1e-4)
    assert second.num_frames == 4 and second.num_tokens == plan.window_spec(plan.windows[1]).audio_tokens
    assert second.reference_frame is not None and torch.equal(second.reference_frame, state.video[:, :, :1])


def test_a_dubs_windows_see_their_own_part_and_hear_the_one_before(engine: Engine, given: Path) -> None:
    plan = check(requests(given)["dub"], engine.preset)
    state = engine_module.State(torch.zeros(1, 4, 9, 4, 4), torch.randn(1, 206, 80))
    with torch.inference_mode(), Preparer(plan, engine.video_vae, engine.captions) as preparer:
        opening = preparer.window(0).given
        second = preparer.window(1, state, state)
    first = opening.video
    start, stop = plan.windows[1].latents_after(plan.windows[0]), plan.windows[0].num_frames // 4
    assert first is not None and second.given.video is not None and second.given.audio is not None
    assert torch.equal(first[:, :, start + 1 : stop], second.given.video[:, :, 1 : stop - start])
    assert torch.equal(second.given.audio, state.audio[:, 25 * start : 25 * start + 81])
    # the video's own voice
    assert opening.reference_audio is not None and second.given.reference_audio is not None
    assert torch.equal(second.given.reference_audio, opening.reference_audio)


@pytest.mark.parametrize("voice", [None, "speech.wav"])
def test_later_windows_listen_to_the_first_ones_voice_beside_what_was_said_last(
    voice: str | None, engine: Engine, given: Path
) -> None:
    path = None if voice is None else given / voice
    plan = check(Request(task="generate", prompt="a man", speech=WORDS, voice=path), engine.preset)
    spoken = torch.randn(1, 206, 80)
    state = engine_module.State(torch.randn(1, 4, 9, 4, 4), spoken)
    with torch.inference_mode(), Preparer(plan, engine.video_vae, engine.captions) as preparer:
        alone, later = preparer.window(0).given.reference_audio, preparer.window(1, state, state)
    assert (alone is None) == (voice is None)
    assert later.given.num_tokens == 81 and later.given.num_frames == 4
    reference = later.given.reference_audio
    assert reference is not None
    if alone is not None:
        assert torch.equal(reference, alone)
        return
    assert plan.own_voice is not None
    start, end = (round(100 * seconds) for seconds in plan.own_voice)
    assert torch.equal(reference[:, : end - start], spoken[:, start:end]) and 80 <= end - start <= 220
    # what the voice says there is told in both passes
    assert later.positive.phonemes[0, : end - start].all() and later.negative.phonemes[0, : end - start].all()
    told = "".join(map(chr, later.negative.speech[0].tolist()))
    assert WORDS.startswith(told.strip()) and len(told) > 8


@pytest.mark.parametrize("task", ["generate", "continue"])
def test_a_voice_that_nobody_gave_is_that_of_a_draft(
    task: str, engine: Engine, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = check(requests(given)[task], engine.preset)
    assert plan.preset.sampling.person_first
    heard: list[tuple[int, torch.Tensor | None]] = []
    sample = engine._sample

    def stopped_in_the_third(plan: Plan, index: int, prepared: Prepared, *rest: Any) -> State:
        heard.append((index, prepared.given.reference_audio))
        if len(heard) == 4:
            raise KeyboardInterrupt
        return sample(plan, index, prepared, *rest)

    monkeypatch.setattr(engine, "_sample", stopped_in_the_third)
    with pytest.raises(engine_module.Interrupted, match=r"2 of \d+ windows are kept"):
        engine.run(plan, keep_in=tmp_path)
    assert [index for index, _ in heard] == [0, 0, 1, 2]
    voice = heard[1][1]
    assert heard[0][1] is None and voice is not None

    engine.run(plan, keep_in=tmp_path).close()
    assert [index for index, _ in heard[4:6]] == [0, 2]  # the draft once more
    assert all(again is not None and torch.equal(again, voice) for _, again in heard[2:4] + heard[5:])


def test_a_stopped_clip_goes_on_from_the_last_whole_window(
    engine: Engine, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = requests(given)["continue"]
    whole = written(engine.run(request), tmp_path / "whole.mp4")
    sample, calls = engine_module.sample, []

    def stop_in_the_third(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:  # a draft came first
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(engine_module, "sample", stop_in_the_third)
    with pytest.raises(engine_module.Interrupted, match=r"2 of \d+ windows are kept"):
        engine.run(request, keep_in=tmp_path)
    (folder,) = tmp_path.glob(".uniavgen-*")
    last = sorted(folder.glob("*.safetensors"))[-1]
    last.write_bytes(last.read_bytes()[:1000])  # as a power failure would leave it
    assert engine.seed_begun(check(replace(request, seed=77), engine.preset), tmp_path) == request.seed
    assert engine.seed_begun(check(replace(request, steps=1), engine.preset), tmp_path) is None
    calls[:] = [1, 1, 1, 1]
    clip = engine.run(request, keep_in=tmp_path)
    assert len(calls) - 4 == len(clip.plan.windows)  # the draft, the damaged one and those after it
    assert written(clip, tmp_path / "again.mp4") == whole
    clip.close()
    assert not list(tmp_path.glob(".uniavgen-*"))


def test_two_runs_of_one_clip_do_not_share_its_windows(engine: Engine, given: Path, tmp_path: Path) -> None:
    request = replace(requests(given)["animate"], steps=1)
    one = engine.run(request, keep_in=tmp_path)
    other = engine.run(request, keep_in=tmp_path)
    assert one.store is not None and other.store is not None
    assert one.store.stays and not other.store.stays and one.store.folder != other.store.folder
    other.close()
    assert written(one, tmp_path / "a.mp4")
    one.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.fixture
def run(
    tmp_path: Path, given: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs a command on the tiny preset in an empty folder; {g} in it is the folder of given files."""
    if not (given / "tiny.yaml").exists():
        write_tiny_preset(given)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNIAVGEN_PRESET", str(given / "tiny.yaml"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main([argument.replace("{g}", str(given)) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_ctrl_c_says_how_many_windows_are_kept_and_the_same_command_takes_them_up(
    run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("generate", "--prompt", "A man", "--duration", "5", "-o", "a.mp4")
    sample, calls = engine_module.sample, []

    def stop(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 4:  # the person, and two windows
            raise KeyboardInterrupt
        return sample(*arguments)

    monkeypatch.setattr(engine_module, "sample", stop)
    code, out, err = run(*command)
    assert (code, out) == (130, "")
    assert err == "error: interrupted; 2 of 4 windows are kept, the same command goes on from there\n"
    code, out, err = run(*command, "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert len(calls) == 4 + 3 and len(answer["clips"][0]["windows"]) == 4
    assert answer["seed"] == answer["clips"][0]["seed"]
    assert [path.name for path in Path().iterdir()] == ["a.mp4"]
    with av.open("a.mp4") as container:
        assert sum(1 for _ in container.decode(video=0)) == 80


def test_progress_names_the_window(engine: Engine, given: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    clip = engine.run(requests(given)["generate"], progress=lambda stage, done, total: stages.append(stage))
    clip.save(tmp_path / "a.mkv", progress=lambda stage, done, total: stages.append(stage))
    count = len(clip.plan.windows)
    for index in range(count):
        assert f"sampling, window {index + 1} of {count}" in stages
        assert f"writing, window {index + 1} of {count}" in stages
    clip.close()


def test_sound_goes_over_where_it_is_quietest() -> None:
    loud = np.ones(24_000, np.float32)
    loud[9600:10_800] = 0.01  # 50 ms
    assert 9600 <= _quietest(loud, loud) <= 10_080
    assert _quietest(np.zeros(2400), np.zeros(2400)) == 2400 - 720  # of equal ones the last


def test_a_window_that_was_decoded_more_quietly_is_brought_to_the_level_of_the_one_before() -> None:
    sound = np.random.default_rng(0).normal(0, 0.1, 24_000).astype(np.float32)
    assert _same_level(sound, 0.5 * sound) == pytest.approx(2.0)
    assert _same_level(sound, 0.98 * sound) == _same_level(0 * sound, 0 * sound) == 1.0


def test_loudness_is_that_of_the_standard() -> None:
    """A sine of 997 Hz at full scale in one channel is -3.01 LUFS; pauses do not count (ITU-R BS.1770-4)."""
    sine = np.sin(2 * np.pi * 997 * np.arange(3 * RATE) / RATE)
    assert loudness(sine, RATE) == pytest.approx(-3.01, abs=0.1)
    assert loudness(np.concatenate([sine / 10, np.zeros(3 * RATE)]), RATE) == pytest.approx(-23.0, abs=0.3)
    assert loudness(np.zeros(RATE), RATE) is None


@pytest.mark.slow
def test_a_full_disk_keeps_the_windows_that_are_whole(engine: Engine, given: Path, tmp_path: Path) -> None:
    request = requests(given)["generate-voice"]
    whole = written(engine.run(request), tmp_path / "whole.mp4")
    small = tmp_path / "small"
    with small_disk(small, "100k") as grow:
        with pytest.raises(OutputError, match=r"no space left on the disk in .*; 2 of \d windows are kept"):
            engine.run(request, keep_in=small)
        (folder,) = small.iterdir()
        assert sorted(path.name for path in folder.iterdir()) == ["00000.safetensors", "00001.safetensors"]
        grow()
        clip = engine.run(request, keep_in=small)
        assert written(clip, small / "again.mp4") == whole
        clip.close()
        assert [path.name for path in small.iterdir()] == ["again.mp4"]


def test_a_clip_goes_on_without_a_jump() -> None:
    """Of what jumps, two frames take a part back."""
    given = torch.rand(3, 8, 8) * 255
    steps = (joined((given + 10)[:, None].repeat(1, 20, 1, 1), given) - given[:, None]).mean((0, 2, 3))
    assert steps[:4].tolist() == pytest.approx([6, 8, 10, 10], abs=0.3)
    assert joined(given[:, None], given).shape == (3, 1, 8, 8)


def test_a_clip_goes_on_as_sharp_as_it_was_where_nothing_moves() -> None:
    """Elsewhere the details that the codec lost fade out."""
    given = torch.rand(3, 32, 32) * 255
    lost = torch.randn(3, 32, 32) * 4
    seen = (given - lost)[:, None].repeat(1, 20, 1, 1)  # as it is decoded, and standing still
    still = seen.clone()
    detail(still, given, given - lost, 16)
    assert torch.allclose(still, given[:, None], atol=1e-3)

    seen[:, :, :16] += 60
    made, later = seen.clone(), seen.clone()
    detail(made, given, given - lost, 16)
    assert torch.allclose(made[:, :, 24:], given[:, None, 24:], atol=1e-3)
    assert torch.allclose(made[:, 0, :8], given[:, :8] + 60, atol=1e-3)
    assert torch.allclose(made[:, 8, :8], given[:, :8] + 60 - lost[:, :8] / 2, atol=1e-3)
    detail(later, given, given - lost, 0)
    for softer in (made[:, 17:], later):
        assert torch.allclose(softer[:, :, :8], (given - lost)[:, None, :8] + 60, atol=1e-3)
