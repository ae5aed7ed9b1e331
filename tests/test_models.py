"""The joint model at a tiny size: against its formulas, by gradients, and by what must not change."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import textbook
import torch
from joint_inputs import (
    COLUMNS,
    FRAMES,
    PER_FRAME,
    ROWS,
    SIZES,
    TOKENS,
    audio_stream,
    conditions,
    on,
    rand,
    tiny_model,
    video_stream,
)
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from uniavgen_cli.errors import WeightsError
from uniavgen_cli.models.alignment import audio_windows, video_sources
from uniavgen_cli.models.branch import unpatchify
from uniavgen_cli.models.interaction import Grid
from uniavgen_cli.models.speech_text import pad_tokens
from uniavgen_cli.models.state_dict import load_module, read_tensors, save_sharded
from uniavgen_cli.models.uniavgen import (
    CLEAN_FLOOR,
    AudioStream,
    Conditions,
    JointOutput,
    Switches,
    UniAVGen,
    UniAVGenConfig,
    VideoStream,
)


def assert_same(ours: JointOutput, theirs: JointOutput, atol: float = 1e-5) -> None:
    for name, value in vars(theirs).items():
        torch.testing.assert_close(getattr(ours, name), value, atol=atol, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_reference", "num_given", "heard", "given"), [(1, 1, 0, 0), (0, 0, 7, 0), (1, 2, 7, 9)]
)
@torch.inference_mode()
def test_the_model_is_its_formulas(num_reference: int, num_given: int, heard: int, given: int) -> None:
    model = tiny_model()
    inputs = (
        video_stream(num_reference=num_reference, num_given=num_given),
        audio_stream(num_reference=heard, num_given=given),
        conditions(14, num_reference=heard),
        Switches(a2v=(True,), v2a=(True,), skip_block=2, skipped=(True,)),
    )
    assert_same(model(*inputs), textbook.forward(model, *inputs))


def test_a_frame_hears_its_window_only() -> None:
    model, grid = tiny_model(), Grid(FRAMES, ROWS // 2, COLUMNS // 2)
    picture = rand(1, FRAMES * PER_FRAME, SIZES["video_dim"])
    sound = rand(1, TOKENS, SIZES["audio_dim"]).requires_grad_()
    update = model.a2v_blocks[0](picture, sound, torch.ones(1, FRAMES * PER_FRAME), grid, 0)
    for frame, window in enumerate(audio_windows(FRAMES, TOKENS)):
        of_frame = update.unflatten(1, (FRAMES, PER_FRAME))[:, frame]
        (grad,) = torch.autograd.grad(of_frame.square().sum(), sound, retain_graph=True)
        assert set(grad[0].abs().sum(-1).nonzero().flatten().tolist()) == set(window)


def test_a_token_sees_its_moment_only() -> None:
    model, grid = tiny_model(), Grid(FRAMES, ROWS // 2, COLUMNS // 2)
    picture = rand(1, FRAMES * PER_FRAME, SIZES["video_dim"]).requires_grad_()
    sound = rand(1, TOKENS, SIZES["audio_dim"])
    update = model.v2a_blocks[0](sound, picture, torch.ones(1, FRAMES * PER_FRAME), grid, 0)
    for token, source in enumerate(video_sources(FRAMES, TOKENS)):
        (grad,) = torch.autograd.grad(update[0, token].square().sum(), picture, retain_graph=True)
        seen = set(grad[0].unflatten(0, (FRAMES, -1)).abs().sum((1, 2)).nonzero().flatten().tolist())
        weights = {source.upper: source.upper_weight, source.lower: source.lower_weight}
        assert seen == {frame for frame, weight in weights.items() if weight}


@torch.inference_mode()
def test_a_masked_picture_takes_and_gives_nothing() -> None:
    model, grid = tiny_model(), Grid(FRAMES, ROWS // 2, COLUMNS // 2)
    picture, sound = rand(1, FRAMES * PER_FRAME, SIZES["video_dim"]), rand(1, TOKENS, SIZES["audio_dim"])
    hidden = torch.zeros(1, FRAMES * PER_FRAME)
    a2v, v2a = model.a2v_blocks[0], model.v2a_blocks[0]
    torch.testing.assert_close(a2v(picture, sound, hidden, grid, 0), a2v.o.bias.expand_as(picture))
    blank = v2a(sound, torch.zeros_like(picture), torch.ones_like(hidden), grid, 0)
    torch.testing.assert_close(v2a(sound, picture, hidden, grid, 0), blank)


@torch.inference_mode()
def test_both_directions_off_are_two_branches() -> None:
    model = tiny_model()
    video, audio, text = video_stream(), audio_stream(), conditions(12)
    apart = Switches(a2v=(False,), v2a=(False,))
    out = model(video, audio, text, apart)
    other_sound = model(video, replace(audio, mels=audio.mels + 1), text, apart)
    other_picture = model(replace(video, latents=video.latents + 1), audio, text, apart)
    assert torch.equal(out.video, other_sound.video) and torch.equal(out.audio, other_picture.audio)
    torch.testing.assert_close(out.audio, model.forward_audio(audio, text))
    torch.testing.assert_close(out.video, model.forward_video(video, text.caption))
    assert not torch.equal(model(video, audio, text, on()).video, out.video)


@torch.inference_mode()
def test_clean_latents_are_what_the_velocity_leaves() -> None:
    model, video, audio, text = tiny_model(clean_video=True), video_stream(), audio_stream(), conditions(12)
    model.head.register_forward_hook(lambda head, inputs, out: made.append(out))
    made: list[torch.Tensor] = []
    out = model(video, audio, text, on())
    shape = (video.latents.shape[2], *(side // 2 for side in video.latents.shape[3:]))
    clean, kept = unpatchify(made[0], shape, model.config.patch).split(video.latents.shape[1], dim=1)
    expected = clean + kept.sigmoid() * (video.latents[:, :, :1] - clean)
    noisy = video.timesteps[0] >= 1000 * CLEAN_FLOOR
    left = video.latents - out.video * (video.timesteps / 1000)[:, None, :, None, None]
    assert noisy.any() and out.video.isfinite().all()
    torch.testing.assert_close(left[:, :, noisy], expected[:, :, noisy])


@torch.inference_mode()
def test_a_batch_mixes_tasks_and_text_lengths() -> None:
    model = tiny_model()
    video = video_stream(4, num_given=(1, 3, 1, FRAMES))
    audio = audio_stream(4, num_given=(0, 9, TOKENS, 0))
    text = conditions(12, 10, 17, 12)
    switches = Switches(
        a2v=(True, False, True, True),
        v2a=(False, True, True, True),
        skip_block=1,
        skipped=(False, True, False, False),
    )
    together = model(video, audio, text, switches)
    for i in range(4):
        one = slice(i, i + 1)
        alone = model(
            VideoStream(latents=video.latents[one], timesteps=video.timesteps[one], num_reference=1,
                        num_given=(1, 3, 1, FRAMES)[i]),
            AudioStream(mels=audio.mels[one], timesteps=audio.timesteps[one], num_given=(0, 9, TOKENS, 0)[i]),
            Conditions(caption=text.caption[one], speech=text.speech[one, : text.speech_lengths[i]],
                       speech_lengths=text.speech_lengths[one], phonemes=text.phonemes[one]),
            Switches(a2v=switches.a2v[one], v2a=switches.v2a[one], skip_block=1,
                     skipped=switches.skipped[one]),
        )  # fmt: skip
        assert_same(JointOutput(*(value[one] for value in vars(together).values())), alone)


@torch.inference_mode()
def test_face_prior_steers_the_mask() -> None:
    model = tiny_model()
    inputs = video_stream(), audio_stream()
    free = model(*inputs, conditions(10), on())
    zero = replace(conditions(10), face_prior=torch.zeros(1, FRAMES, PER_FRAME))
    assert_same(model(*inputs, zero, on()), free)
    lifted = model(*inputs, replace(zero, face_prior=zero.face_prior + 3), on())
    torch.testing.assert_close(lifted.face_mask_logits[:, 0], free.face_mask_logits[:, 0] + 3)


@torch.inference_mode()
def test_no_phonemes_are_phonemes_of_nothing() -> None:
    model, audio = tiny_model(), audio_stream()
    nothing = replace(conditions(10), phonemes=torch.zeros(1, TOKENS, dtype=torch.int64))
    without = model.forward_audio(audio, replace(nothing, phonemes=None))
    assert torch.equal(without, model.forward_audio(audio, nothing))
    assert not torch.equal(without, model.forward_audio(audio, conditions(10)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_parameter_learns(dtype: torch.dtype) -> None:
    model = tiny_model().train()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = model(
            video_stream(2), audio_stream(2, num_reference=5), conditions(12, 10, num_reference=5), on(2)
        )
    sum(value.float().square().mean() for value in vars(out).values()).backward()
    without = [
        name for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]  # fmt: skip
    assert without == []


def test_from_scratch_nothing_is_predicted_and_the_mask_is_half() -> None:
    model = UniAVGen(UniAVGenConfig(**SIZES))
    out = model(video_stream(), audio_stream(), conditions(10), on())
    assert not out.video.any() and not out.audio.any() and not out.face_mask_logits.any()


def test_given_text_is_padded_to_ten_keys() -> None:
    speech, lengths = pad_tokens([[3, 4], list(range(12))])
    assert speech.shape == (2, 12) and lengths == (10, 12)
    assert speech[0].tolist() == [3, 4] + [-1] * 10


# Costs


def flops(model: UniAVGen, *inputs: object) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(*inputs)
    counts = counter.get_flop_counts()["Global"]
    return sum(count for operation, count in counts.items() if "attention" not in str(operation))


def test_matrix_products_of_a_forward() -> None:
    config = UniAVGenConfig(
        video_dim=512, video_heads=4, video_ffn_dim=2048, audio_dim=256, audio_heads=2, audio_ffn_dim=1024,
        num_blocks=8, interaction_blocks=(0, 2, 4, 6), freq_dim=256, caption_dim=64, caption_tokens=16,
        speech_vocab=64, speech_text_dim=64, speech_conv_blocks=1, video_latent_channels=48,
    )  # fmt: skip
    times = torch.full((1, 22), 700.0)
    times[:, :2] = 0
    cost = flops(
        UniAVGen(config),
        VideoStream(latents=torch.zeros(1, 48, 22, 16, 16), timesteps=times, num_reference=1, num_given=1),
        AudioStream(mels=torch.zeros(1, 506, 80), timesteps=torch.full((1, 506), 700.0)),
        replace(conditions(16), caption=torch.zeros(1, 16, 64), phonemes=None),
        on(),
    )
    assert cost < 110e9  # 172.5e9 where every audio token projects its own picture


def test_an_interaction_that_is_off_costs_nothing() -> None:
    inputs = video_stream(), audio_stream(), conditions(10)
    apart = flops(tiny_model(), *inputs, Switches(a2v=(False,), v2a=(False,)))
    assert apart == flops(tiny_model(interaction_blocks=()), *inputs, on())
    one_of_two = flops(
        tiny_model(),
        video_stream(2),
        audio_stream(2),
        conditions(10, 10),
        Switches(a2v=(True, False), v2a=(True, False)),
    )
    both = flops(tiny_model(), video_stream(2), audio_stream(2), conditions(10, 10), on(2))
    assert both - one_of_two == pytest.approx((both - 2 * apart) / 2, rel=0.1)
    all_given = flops(tiny_model(), video_stream(num_given=FRAMES), audio_stream(), conditions(10), on())
    assert all_given < flops(tiny_model(), *inputs, on())


# Weights


def test_weights_come_back_from_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniavgen_cli.models.state_dict.MAX_SHARD_BYTES", 40_000)
    model = tiny_model()
    index = save_sharded(model.state_dict(), tmp_path, dtype=torch.float32)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 2 and all(file.stat().st_size < 60_000 for file in files)
    loaded = load_module(lambda: UniAVGen(model.config), index)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    inputs = video_stream(), audio_stream(), conditions(10), on()
    with torch.inference_mode():
        assert_same(loaded(*inputs), model(*inputs), atol=0)


def test_small_float32_parts_stay_float32(tmp_path: Path) -> None:
    index = save_sharded(tiny_model().state_dict(), tmp_path)
    loaded = load_module(lambda: UniAVGen(tiny_model().config), index, dtype=torch.bfloat16)
    assert loaded.blocks[0].ffn[0].weight.dtype == torch.bfloat16
    assert loaded.blocks[0].modulation.dtype == loaded.time_projection[1].weight.dtype == torch.float32
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out = loaded(video_stream(), audio_stream(), conditions(10), on())
    assert out.video.isfinite().all() and out.audio.isfinite().all()


def test_keys_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "joint.safetensors"
    tensors = model.state_dict()
    assert "audio_padding" in tensors  # the released layout has it
    del tensors["head.head.bias"]
    tensors["stranger"] = torch.zeros(1)
    tensors["head.head.weight"] = torch.zeros(3, 4)
    save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load_module(lambda: UniAVGen(model.config), path)
    for part in (
        "3 keys",
        "head.head.bias missing",
        "stranger unknown",
        "head.head.weight is (3, 4), not (16, 48)",
    ):
        assert part in str(caught.value)


def test_only_the_first_five_keys_are_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "joint.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_module(tiny_model, tmp_path / "joint.safetensors")
    assert str(caught.value).count(" missing") == 5


@pytest.mark.parametrize("content", [b"", b"not weights", json.dumps({"weight_map": {"a": "gone"}}).encode()])
def test_damaged_weights_are_a_weights_error(tmp_path: Path, content: bytes) -> None:
    for name in ("joint.safetensors", "joint.safetensors.index.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(WeightsError, match="can't be read"):
            read_tensors(tmp_path / name)


def test_tensors_are_written_as_they_are_named(tmp_path: Path) -> None:
    save_sharded({"a": torch.ones(2)}, tmp_path, name="one", dtype=torch.float32)
    assert torch.equal(load_file(tmp_path / "one-00001-of-00001.safetensors")["a"], torch.ones(2))


# Sizes


def test_the_released_size() -> None:
    with torch.device("meta"):
        model = UniAVGen(
            UniAVGenConfig(
                video_dim=3072, video_heads=24, video_ffn_dim=14336, audio_dim=1536, audio_heads=12,
                audio_ffn_dim=8960, num_blocks=30, interaction_blocks=tuple(range(0, 30, 2)), freq_dim=256,
                caption_dim=4096, caption_tokens=512, speech_vocab=2545, speech_text_dim=512,
                speech_conv_blocks=4, video_latent_channels=48,
            )
        )  # fmt: skip
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(7.1e9, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [
        ({"video_heads": 5}, "48 .* 5"),
        ({"interaction_blocks": (0, 3)}, "3, of 3"),
        ({"patch": (2, 2, 2)}, "2 latent"),
    ],
)
def test_impossible_sizes_are_refused(changes: dict, numbers: str) -> None:
    with pytest.raises(ValueError, match=numbers):
        UniAVGenConfig(**{**SIZES, **changes})
