"""The engine and the Python API on an untrained, tiny model: what is given, kept and recorded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
import soundfile
import torch
from tiny_model import write_tiny_preset

from uniavgen_cli.data.dataset import sample_clip
from uniavgen_cli.data.voice import MANNERS, PHONEME_INDEX
from uniavgen_cli.diffusion.sampler import State
from uniavgen_cli.engine import provenance, seams
from uniavgen_cli.engine.conditions import Prepared, moving_span, prepare
from uniavgen_cli.engine.engine import Engine
from uniavgen_cli.engine.request import Plan, Request, check
from uniavgen_cli.errors import InputError
from uniavgen_cli.media.video import read_frames, read_metadata, write_clip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.from_preset(str(write_tiny_preset(tmp_path_factory.mktemp("engine"))))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """face.png, speech.wav and talk.mp4 of one drawn, speaking person."""
    folder = tmp_path_factory.mktemp("given")
    clip = sample_clip(11, 4, lengths=(33,), sizes=((128, 128),))
    frames = clip.draw().frames
    cv2.imwrite(str(folder / "face.png"), frames[0][:, :, ::-1])
    soundfile.write(folder / "speech.wav", clip.samples, 24_000)
    write_clip(folder / "talk.mp4", frames, clip.samples, 16, 24_000)
    return folder


def packets(path: Path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(**{kind: 0}) if p.size]


def test_generate_from_python(engine: Engine, tmp_path: Path) -> None:
    clip = engine.generate("A man with a beard", speech="Hello.", seed=3)
    assert clip.frames.dtype == np.uint8 and clip.frames.shape[1:] == (64, 64, 3)
    assert len(clip.samples) == round(clip.duration_s * 24_000)
    record = provenance.from_tags(read_metadata(clip.save(tmp_path / "a.mp4")))
    assert record is not None
    assert record["seed"] == 3 and record["options"]["speech"] == "Hello." and record["ai_generated"] is True
    again = engine.generate("A man with a beard", speech="Hello.", seed=3)
    assert np.array_equal(clip.frames, again.frames) and np.array_equal(clip.samples, again.samples)
    assert not np.array_equal(
        clip.samples, engine.generate("A man with a beard", speech="Hello.", seed=4).samples
    )


def test_dub_keeps_the_videos_packets(engine: Engine, given: Path, tmp_path: Path) -> None:
    made = engine.dub(given / "talk.mp4", speech="Hello.").save(tmp_path / "dub.mp4")
    assert packets(made, "video") == packets(given / "talk.mp4", "video")
    assert packets(made, "audio") != packets(given / "talk.mp4", "audio")


def test_animate_keeps_the_sound(engine: Engine, given: Path, tmp_path: Path) -> None:
    clip = engine.animate(given / "face.png", given / "speech.wav")
    made = clip.save(tmp_path / "a.mkv")
    with av.open(str(made)) as container:
        sound = np.concatenate([f.to_ndarray().reshape(-1) for f in container.decode(audio=0)])
    true, _ = soundfile.read(given / "speech.wav", dtype="int16")
    assert np.array_equal(sound[: len(true)], true)
    assert abs(clip.duration_s - len(true) / 24_000) < 1 / 16


def test_continue_gives_the_clip_and_then_more(engine: Engine, given: Path, tmp_path: Path) -> None:
    short = write_clip(
        tmp_path / "short.mp4", np.zeros((16, 64, 64, 3), np.uint8), np.zeros(24_000, np.float32), 16, 24_000
    )
    clip = engine.continue_(short, duration_s=0.5)
    assert clip.num_frames == 8
    with av.open(str(clip.save(tmp_path / "more.mp4"))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24
    longer = engine.continue_(given / "talk.mp4", duration_s=0.5)  # of which the end alone is read
    assert longer.plan.context_frames == 13 and longer.num_frames == 8


def test_conditions_are_what_the_table_says(engine: Engine, given: Path) -> None:
    def prepared(**fields: object):
        plan = check(Request(**fields), engine.preset)
        with torch.inference_mode():
            return plan, prepare(plan, engine.video_vae, engine.captions)

    plan, from_prompt = prepared(task="generate", prompt="a red woman", speech="Hello.")
    assert from_prompt.given.video is None and from_prompt.given.reference_frame is None
    placed = from_prompt.positive.phonemes[0]
    first = plan.phonemes[0]
    assert placed[round(100 * (first.start_s + first.end_s) / 2)] == PHONEME_INDEX[first.symbol]
    assert not from_prompt.negative.phonemes.any() and not from_prompt.negative.caption.any()
    assert from_prompt.negative.speech_lengths == (10,)
    plan, from_mood = prepared(task="generate", prompt="a sad woman", speech="Hello.")
    placed = from_mood.positive.phonemes[0]
    vocab, first = engine.model.config.phoneme_vocab, plan.phonemes[0]
    assert (placed // vocab == MANNERS.index("sad")).all() and not from_mood.negative.phonemes.any()
    middle = placed[round(100 * (first.start_s + first.end_s) / 2)]
    assert middle % vocab == PHONEME_INDEX[first.symbol]

    plan, dubbed = prepared(task="dub", video=given / "talk.mp4", speech="Hello.", voice_text="Good day.")
    assert dubbed.given.num_frames == plan.spec.latent_frames and dubbed.given.num_tokens == 0
    reference = dubbed.given.reference_audio
    assert (
        reference is not None
        and dubbed.positive.phonemes.shape[1] == reference.shape[1] + plan.spec.audio_tokens
    )
    assert dubbed.negative.phonemes.any() and dubbed.negative.speech[0].tolist() == [
        ord(c) for c in "Good day. "
    ]

    plan, animated = prepared(task="animate", face=given / "face.png", sound=given / "speech.wav")
    assert animated.given.num_frames == 1 and animated.given.num_tokens == plan.spec.audio_tokens
    assert not animated.positive.phonemes.any()

    plan, continued = prepared(task="continue", video=given / "talk.mp4", duration_s=0.5)
    spec, begin = plan.spec, plan.context_start_s
    kept = read_frames(
        given / "talk.mp4", spec.fps, spec.height, spec.width, start_s=begin, num_frames=plan.context_frames
    )
    now = torch.from_numpy(kept[-1]).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    with torch.inference_mode():
        expected = engine.video_vae.encode(now)
    reference = continued.given.reference_frame  # the person as they are where the clip goes on
    assert reference is not None and torch.allclose(reference, expected, atol=1e-5)
    assert continued.given.num_frames == 4


@pytest.mark.parametrize("evened", [0, 10])
def test_a_person_from_words_is_painted_first(
    evened: int, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = engine.preset.sampling.model_copy(update={"person_first": True, "evened": evened})
    plan = check(Request(task="generate", prompt="a man", speech="Hello.", seed=3), engine.preset)
    plan = replace(plan, preset=engine.preset.model_copy(update={"sampling": sampling}))
    seen: list[tuple[Prepared, State]] = []
    pictures: list[torch.Tensor] = []
    sample, paint = engine._sample, engine._painted

    def watched(plan: Plan, index: int, prepared: Prepared, *rest: Any) -> State:
        seen.append((prepared, sample(plan, index, prepared, *rest)))
        return seen[-1][1]

    def watched_too(*args: Any) -> torch.Tensor:
        pictures.append(paint(*args))
        return pictures[-1]

    monkeypatch.setattr(engine, "_sample", watched)
    monkeypatch.setattr(engine, "_painted", watched_too)
    stages: list[str] = []
    engine.run(plan, progress=lambda stage, done, total: stages.append(stage))
    assert stages.index("painting") < stages.index("sampling")
    ((prepared, state),), (painted,) = seen, pictures
    assert painted.shape == (1, state.video.shape[1], 1, *state.video.shape[3:])
    picture = prepared.given.reference_frame
    assert picture is not None
    expected, seen_first = (engine.video_vae.decode(latents)[0] for latents in (painted, picture))
    assert torch.allclose(seams.evened(expected, evened).clamp(-1, 1), seen_first, atol=0.02)
    for taken in (prepared.given.video, state.video[:, :, :1]):
        assert taken is not None and torch.equal(taken, picture)


def test_a_painted_person_stands_in_the_middle_of_a_picture_of_another_shape(engine: Engine) -> None:
    preset = engine.preset
    preset = preset.model_copy(
        update={
            "clip": preset.clip.model_copy(update={"closeup": 0.48}),
            "sampling": preset.sampling.model_copy(update={"person_first": True}),
        }
    )
    side = preset.clip.short_side
    square, wide = (
        engine.run(check(Request(task="generate", prompt="a man", seed=3, size=size), preset)).frames
        for size in ((side, side), (side, side + 64))
    )
    assert square.shape[1:3] == (side, side) and wide.shape[1:3] == (side, side + 64)
    edge = side // 10 + 1
    middle = wide[:, :, 32 + edge : 32 + side - edge].astype(int)
    assert np.abs(middle - square[:, :, edge:-edge]).max() <= 2
    assert (wide[:, :, :32] == wide[:1, :, :32]).all()
    apart = wide[0, :, :32].mean((0, 1)) - square[0, :, 0].mean(0)
    assert np.abs(apart).max() < 3  # beside it its edge goes on


def test_face_prior_is_of_the_face_and_off_by_default(engine: Engine, given: Path) -> None:
    plan = check(Request(task="animate", face=given / "face.png", sound=given / "speech.wav"), engine.preset)
    assert prepare(plan, engine.video_vae, engine.captions).positive.face_prior is None
    sampling = engine.preset.sampling.model_copy(update={"face_prior": 2.0})
    steered = replace(plan, preset=engine.preset.model_copy(update={"sampling": sampling}))
    prior = prepare(steered, engine.video_vae, engine.captions).positive.face_prior
    assert prior is not None and prior.shape == (1, plan.spec.latent_frames, plan.spec.tokens_per_frame)
    assert -2 <= prior.min() < prior.max() <= 2


def test_no_face_is_a_warning_or_an_error(
    engine: Engine, given: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cv2.imwrite(str(tmp_path / "wall.png"), np.full((96, 96, 3), 90, np.uint8))
    request = Request(task="animate", face=tmp_path / "wall.png", sound=given / "speech.wav")
    with caplog.at_level("WARNING", logger="uniavgen_cli"):
        prepare(check(request, engine.preset), engine.video_vae, engine.captions)
    assert "no face was found" in caplog.text
    with pytest.raises(InputError, match="no face was found"):
        prepare(check(replace(request, require_face=True), engine.preset), engine.video_vae, engine.captions)


def test_a_silent_voice_is_refused(engine: Engine, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(24_000), 24_000)
    with pytest.raises(InputError, match="is silent"):
        engine.generate("a man", speech="Hello.", voice=tmp_path / "silence.wav")


def test_the_moving_span_is_when_the_mouth_moves() -> None:
    clip = sample_clip(11, 4, lengths=(81,), sizes=((128, 128),))
    speaking = [p for p in clip.phonemes if p.symbol != "pause"]
    span = moving_span(clip.draw().frames, 16)
    assert span is not None
    assert abs(span[0] - speaking[0].start_s) < 0.3 and abs(span[1] - speaking[-1].end_s) < 0.4
    assert moving_span(np.zeros((20, 64, 64, 3), np.uint8), 16) is None
