"""Schedule, sampler and guidance: identities, and passes as one batch."""

from dataclasses import replace

import pytest
import torch
from joint_inputs import COLUMNS, FRAMES, ROWS, SIZES, TOKENS, conditions, rand, tiny_model

from uniavgen_cli.diffusion.guidance import Guidance, Pass, guided, join_conditions
from uniavgen_cli.diffusion.sampler import Given, State, noise, sample
from uniavgen_cli.diffusion.schedule import timesteps
from uniavgen_cli.models.uniavgen import JointOutput, Switches, UniAVGen

VIDEO, AUDIO = (1, SIZES["video_latent_channels"], FRAMES, ROWS, COLUMNS), (1, TOKENS, 80)


def test_timesteps_fall_from_1000_to_0() -> None:
    even, shifted = timesteps(5, 1.0), timesteps(5, 5.0)
    assert even == pytest.approx((1000, 750.25, 500.5, 250.75, 1, 0))
    assert all(a > b for a, b in zip(shifted, shifted[1:], strict=False))
    assert all(a >= b for a, b in zip(shifted, even, strict=True))
    assert timesteps(1, 5.0) == (1000, 0)
    with pytest.raises(ValueError, match="steps 0"):
        timesteps(0, 5.0)


def test_euler_reaches_the_data_of_a_straight_path() -> None:
    data, start = State(rand(*VIDEO), rand(*AUDIO)), noise(VIDEO, AUDIO, seed=3)
    velocity = State(start.video - data.video, start.audio - data.audio)
    end = sample(start, timesteps(7, 5.0), lambda state, time: velocity)
    torch.testing.assert_close(end.video, data.video, atol=1e-5, rtol=0)
    torch.testing.assert_close(end.audio, data.audio, atol=1e-5, rtol=0)


def test_a_seed_is_a_noise() -> None:
    assert torch.equal(noise(VIDEO, AUDIO, seed=3).audio, noise(VIDEO, AUDIO, seed=3).audio)
    assert not torch.equal(noise(VIDEO, AUDIO, seed=3).video, noise(VIDEO, AUDIO, seed=4).video)


def test_given_parts_are_clean_and_at_time_0() -> None:
    given = Given(
        reference_frame=rand(*VIDEO[:2], 1, ROWS, COLUMNS),
        video=rand(*VIDEO[:2], 2, ROWS, COLUMNS),
        reference_audio=rand(1, 6, 80),
        audio=rand(1, 9, 80),
    )
    state = noise(VIDEO, AUDIO, seed=0)
    video, audio = (
        stream(state, torch.tensor([400.0])) for stream in (given.video_stream, given.audio_stream)
    )
    assert (video.num_reference, video.num_given, audio.num_reference, audio.num_given) == (1, 2, 6, 9)
    assert video.timesteps.tolist() == [[0, 0, 0] + [400] * (FRAMES - 2)]
    assert audio.timesteps.tolist() == [[400] * 6 + [0] * 9 + [400] * (TOKENS - 9)]
    assert torch.equal(video.latents[:, :, 1:3], given.video) and torch.equal(
        audio.mels[:, 6:15], given.audio
    )
    assert torch.equal(video.latents[:, :, 3:], state.video[:, :, 2:])


def test_sound_given_as_a_whole_is_at_time_0() -> None:
    given = Given(reference_audio=rand(1, 6, 80), audio=rand(*AUDIO))
    stream = given.audio_stream(noise(VIDEO, AUDIO, seed=0), torch.tensor([400.0]))
    assert not stream.timesteps.any()


def test_nothing_given_is_all_noise() -> None:
    state = noise(VIDEO, AUDIO, seed=0)
    stream = Given().video_stream(state, torch.tensor([400.0]))
    assert stream.num_reference == stream.num_given == 0 and torch.equal(stream.latents, state.video)


class Recorder:
    """A model that notes the switches it is called with."""

    def __init__(self, model: UniAVGen) -> None:
        self.model = model
        self.calls: list[Switches] = []

    def __call__(self, *inputs: object) -> JointOutput:
        self.calls.append(inputs[-1])  # type: ignore[arg-type]
        return self.model(*inputs)


TIMES = timesteps(4, 5.0)
WITH_TEXT, WITHOUT = Pass(conditions=conditions(17), v2a=False), Pass(conditions=conditions(10))
GIVEN = Given(reference_frame=rand(*VIDEO[:2], 1, ROWS, COLUMNS), reference_audio=rand(1, 6, 80))
WITH_TEXT, WITHOUT = (
    replace(one, conditions=conditions(length, num_reference=6))
    for one, length in ((WITH_TEXT, 17), (WITHOUT, 10))
)


@torch.inference_mode()
def velocity(guidance: Guidance, time: float, batched: bool = False) -> tuple[State, list[Switches]]:
    model = Recorder(tiny_model())
    denoise = guided(model, guidance, TIMES, GIVEN, WITH_TEXT, WITHOUT, batched=batched)  # type: ignore[arg-type]
    return denoise(noise(VIDEO, AUDIO, seed=0), time), model.calls


def test_scale_1_is_the_conditional_pass_alone() -> None:
    _, calls = velocity(Guidance(), TIMES[0])
    assert calls == [Switches(a2v=(True,), v2a=(False,), skip_block=None, skipped=(False,))]


def test_guidance_pushes_each_stream_by_its_scale() -> None:
    plain, _ = velocity(Guidance(), TIMES[0])
    double, calls = velocity(Guidance(video_scale=2.0, audio_scale=0.0), TIMES[0])
    threefold, _ = velocity(Guidance(video_scale=3.0, audio_scale=1.0), TIMES[0])
    assert len(calls) == 2
    torch.testing.assert_close(
        threefold.video - double.video, double.video - plain.video, atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(threefold.audio, plain.audio)
    assert not torch.allclose(double.audio, plain.audio)


def test_modality_aware_guidance_parts_the_branches_early_on() -> None:
    guidance = Guidance(video_scale=3.0, skip_block=1, modality_fraction=0.5)
    for time, runs in zip(TIMES[:-1], (False, False, True, True), strict=True):
        _, (first, second) = velocity(guidance, time)
        assert first == Switches(a2v=(True,), v2a=(False,), skip_block=1, skipped=(False,))
        assert second == Switches(a2v=(runs,), v2a=(runs,), skip_block=1, skipped=(True,))


def test_guidance_runs_in_its_interval_alone() -> None:
    guidance = Guidance(video_scale=3.0, audio_scale=2.0, interval=(0.25, 0.75))
    for time, passes in zip(TIMES[:-1], (1, 2, 2, 1), strict=True):
        for batched in (False, True):
            given, calls = velocity(guidance, time, batched)
            assert sum(len(call.a2v) for call in calls) == passes
        if passes == 1:
            assert torch.equal(given.video, velocity(Guidance(), time)[0].video)


@pytest.mark.parametrize("time", [TIMES[0], TIMES[3]])
def test_one_batch_is_two_passes(time: float) -> None:
    guidance = Guidance(video_scale=3.0, audio_scale=2.0, skip_block=1, modality_fraction=0.5)
    together, calls = velocity(guidance, time, batched=True)
    apart, _ = velocity(guidance, time)
    assert len(calls) == 1
    torch.testing.assert_close(together.video, apart.video, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together.audio, apart.audio, atol=1e-5, rtol=1e-5)


def test_joined_conditions_fill_what_one_lacks() -> None:
    prior = torch.ones(1, FRAMES, 6)
    joined = join_conditions(conditions(12), replace(conditions(10), phonemes=None, face_prior=prior))
    assert joined.speech.shape == (2, 12) and joined.speech_lengths == (12, 10)
    assert joined.phonemes is not None and joined.face_prior is not None
    assert joined.phonemes[0].any() and not joined.phonemes[1].any()
    assert not joined.face_prior[0].any() and joined.face_prior[1].all()
