"""The video VAE: what depends on what, lengths, strict loading, training, how well shipped weights do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from uniavgen_cli.codecs import video_vae
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.errors import WeightsError
from uniavgen_cli.training import trainer, vae_stage

BLOCKS = (1, 0, 1)
TINY = VideoVAEConfig(latent_channels=4, widths=(8, 12, 16), encoder_blocks=BLOCKS, decoder_blocks=BLOCKS)
SHIPPED = Path(__file__).parent.parent / "weights" / "nano" / "video_vae.safetensors"


@pytest.fixture
def vae() -> VideoVAE:
    """A tiny VAE whose every weight matters: no branch starts at zero."""
    torch.manual_seed(0)
    vae = VideoVAE(TINY)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return vae.eval()


@pytest.mark.parametrize("num_frames", [1, 5, 13])
def test_shapes(vae: VideoVAE, num_frames: int) -> None:
    frames = torch.rand(2, 3, num_frames, 32, 64) * 2 - 1
    latents = vae.encode(frames)
    assert latents.shape == (2, 4, 1 + num_frames // 4, 2, 4)
    decoded = vae.decode(3 * latents)
    assert decoded.shape == frames.shape
    assert decoded.abs().max() <= 1


@pytest.mark.parametrize("shape", [(1, 3, 4, 32, 32), (1, 3, 5, 40, 32)])
def test_wrong_shapes_are_named(vae: VideoVAE, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="4 frames|40x32"):
        vae.encode(torch.zeros(shape))


def test_wrong_config() -> None:
    with pytest.raises(ValueError, match="widths"):
        VideoVAEConfig(widths=(8, 16))


def test_a_latent_frame_sees_its_own_four_frames(vae: VideoVAE) -> None:
    frames = torch.zeros(1, 3, 13, 32, 32, requires_grad=True)
    for i, own in enumerate((range(0, 1), range(1, 5), range(5, 9), range(9, 13))):
        (gradient,) = torch.autograd.grad(vae.encode(frames)[:, :, i].sum(), frames)
        assert set(gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()) == set(own)


def test_the_decoder_looks_back_never_ahead(vae: VideoVAE) -> None:
    latents = torch.randn(1, 4, 5, 2, 2, requires_grad=True)
    frames = vae.decoder(latents)
    (gradient,) = torch.autograd.grad(frames[:, :, 9:13].sum(), latents)  # the group of latent frame 3
    assert set(gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()) == {1, 2, 3}


def test_a_still_picture_has_one_latent(vae: VideoVAE) -> None:
    frames = torch.rand(1, 3, 1, 32, 32).expand(-1, -1, 5, -1, -1)
    latents = vae.encode(frames)
    assert torch.allclose(latents[:, :, 0], latents[:, :, 1], atol=1e-6)


def test_chunks_change_nothing(vae: VideoVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(2, 4, 7, 2, 2)
    whole = vae.decode(latents)
    monkeypatch.setattr(video_vae, "UPSCALE_CHUNK", 2)
    assert torch.allclose(vae.decode(latents), whole, atol=1e-6)


def test_loading_is_strict(vae: VideoVAE, tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in vae.state_dict().items()}
    save_file(state, tmp_path / "good.safetensors")
    loaded = VideoVAE.load(tmp_path / "good.safetensors", TINY)
    latents = torch.randn(1, 4, 2, 2, 2)
    assert torch.equal(loaded.decode(latents), vae.decode(latents))

    state.pop("encoder.stem.bias")
    save_file(state, tmp_path / "lacking.safetensors")
    with pytest.raises(WeightsError, match="encoder.stem.bias"):
        VideoVAE.load(tmp_path / "lacking.safetensors", TINY)
    with pytest.raises(WeightsError, match="can't be read"):
        VideoVAE.load(tmp_path / "missing.safetensors", TINY)


def test_batches_follow_from_the_step() -> None:
    first, again, other = (vae_stage.batch(step, latent_frames=4) for step in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert first["frames"].shape != other["frames"].shape or not torch.equal(first["frames"], other["frames"])
    assert first["frames"].abs().max() <= 1
    assert first["weight"].max() >= vae_stage.MOUTH_WEIGHT


def test_training_learns_and_exports_normalised_latents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_stage, "START_CLIPS", 4)
    monkeypatch.setattr(vae_stage, "STATISTICS_CLIPS", 6)
    stage = vae_stage.vae_stage(TINY, steps=40, lr=1e-2, latent_frames=2, dtype=torch.float32)
    torch.manual_seed(1)
    stage.module.load_state_dict(VideoVAE(TINY).state_dict())  # not from principal components: all to learn
    held_out = vae_stage.batch(0, latent_frames=6, seed=1)

    def pixel_loss() -> float:
        with torch.no_grad():
            losses = stage.loss(stage.module, held_out, 0)
        assert all(value.shape == (len(held_out["frames"]),) for value in losses.values())
        return float(losses["pixel"].mean())

    before = pixel_loss()
    assert trainer.run(stage, tmp_path)
    assert pixel_loss() < 0.8 * before

    vae = VideoVAE.load(tmp_path / "video_vae.safetensors", TINY)
    clips = [vae_stage.speaker_clip(vae_stage.HELD_OUT + i, 9, 128, 128)[0] for i in range(6)]
    frames = torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3) / 127.5 - 1
    with torch.inference_mode():
        latents = vae.encode(frames)
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 0.05
    assert (latents.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.05


def test_inner_motion_is_what_a_group_of_four_does_not_share() -> None:
    frames = torch.tensor([9.0, 1, 1, 1, 1, 0, 0, 4, 4]).view(1, 1, 9, 1, 1)
    assert vae_stage.inner_motion(frames).flatten().tolist() == [0, 0, 0, 0, 0, -2, -2, 2, 2]
    assert vae_stage.inner_motion(frames[:, :, :1]).flatten().tolist() == [0]


def test_the_start_is_already_a_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_stage, "START_CLIPS", 6)
    wide = VideoVAEConfig(latent_channels=16, widths=(4, 4, 4), encoder_blocks=BLOCKS, decoder_blocks=BLOCKS)
    vae = vae_stage.vae_stage(wide).module
    clip, _ = vae_stage.speaker_clip(2 * vae_stage.HELD_OUT + 1, 9, 128, 128)
    frames = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.inference_mode():
        decoded, _ = vae(frames, 0.0, torch.Generator())
    assert (decoded - frames).square().mean() < 0.4 * frames.var()


@pytest.fixture(scope="module")
def shipped_psnr() -> tuple[float, float]:
    """Of four unseen speakers through the shipped VAE: dB of the whole picture and of the mouth."""
    vae = VideoVAE.load(SHIPPED, VideoVAEConfig())
    whole, mouth = [], []
    for i in range(4):
        clip, weight = vae_stage.speaker_clip(vae_stage.HELD_OUT + 2000 + i, 9, 128, 128)
        with torch.inference_mode():
            frames = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
            error = (vae.decode(vae.encode(frames)) - frames).square().mean(1)[0] / 4
        whole.append(-10 * error.mean().log10())
        mouth.append(-10 * error[torch.from_numpy(weight) == vae_stage.MOUTH_WEIGHT].mean().log10())
    return float(np.mean(whole)), float(np.mean(mouth))


def test_shipped_weights_keep_faces_and_mouths(shipped_psnr: tuple[float, float]) -> None:
    """What the shipped weights do reach; less would be a loss on the way from file to picture."""
    whole, mouth = shipped_psnr
    assert whole > 26 and mouth > 18


@pytest.mark.xfail(
    strict=True, reason="the first weights miss their bars: about 28 and 20 dB on unseen speakers"
)
def test_shipped_weights_reach_their_bars(shipped_psnr: tuple[float, float]) -> None:
    whole, mouth = shipped_psnr
    assert whole >= 30 and mouth >= 26
