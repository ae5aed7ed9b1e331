"""The video VAE: what depends on what, lengths, strict loading, training, how well shipped weights do."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from uniavgen_cli.codecs.video_vae import CELL_SIZE, VideoVAE, VideoVAEConfig
from uniavgen_cli.data.cache import frames_of
from uniavgen_cli.errors import WeightsError
from uniavgen_cli.training import trainer, vae_stage

TINY = VideoVAEConfig(latent_channels=4)
SHIPPED = Path(__file__).parent.parent / "weights" / "nano" / "video_vae.safetensors"


@pytest.fixture
def vae() -> VideoVAE:
    """A tiny VAE whose every weight matters."""
    torch.manual_seed(0)
    vae = VideoVAE(TINY)
    for value in vae.state_dict().values():
        torch.nn.init.normal_(value, mean=0.2, std=0.1)
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


@pytest.mark.parametrize("channels", [0, CELL_SIZE + 1])
def test_wrong_config(channels: int) -> None:
    with pytest.raises(ValueError, match=f"latent_channels {channels}"):
        VideoVAEConfig(latent_channels=channels)


def test_all_components_are_the_picture_itself() -> None:
    vae = VideoVAE(VideoVAEConfig(latent_channels=CELL_SIZE))
    with torch.no_grad():
        vae.components.copy_(torch.linalg.qr(torch.randn(CELL_SIZE, CELL_SIZE)).Q)
        vae.latent_mean.normal_()
        vae.latent_std.uniform_(0.5, 2)
        frames = torch.rand(2, 3, 9, 32, 48) * 2 - 1
        assert torch.allclose(vae.decode(vae.encode(frames)), frames, atol=1e-4)


def test_a_latent_frame_sees_its_own_four_frames(vae: VideoVAE) -> None:
    frames = torch.zeros(1, 3, 13, 32, 32, requires_grad=True)
    for i, own in enumerate((range(0, 1), range(1, 5), range(5, 9), range(9, 13))):
        (gradient,) = torch.autograd.grad(vae.encode(frames)[:, :, i].sum(), frames)
        assert set(gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()) == set(own)


def test_a_latent_frame_becomes_its_own_four_frames(vae: VideoVAE) -> None:
    latents = torch.zeros(1, 4, 4, 2, 2, requires_grad=True)
    for i, own in enumerate((slice(0, 1), slice(1, 5), slice(5, 9), slice(9, 13))):
        (gradient,) = torch.autograd.grad(vae.decode(latents)[:, :, own].sum(), latents)
        assert gradient.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist() == [i]


def test_a_still_picture_has_one_latent(vae: VideoVAE) -> None:
    frames = torch.rand(1, 3, 1, 32, 32).expand(-1, -1, 5, -1, -1)
    latents = vae.encode(frames)
    assert torch.allclose(latents[:, :, 0], latents[:, :, 1], atol=1e-6)


def test_loading_is_strict(vae: VideoVAE, tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in vae.state_dict().items()}
    save_file(state, tmp_path / "good.safetensors")
    loaded = VideoVAE.load(tmp_path / "good.safetensors", TINY)
    latents = torch.randn(1, 4, 2, 2, 2)
    assert torch.equal(loaded.decode(latents), vae.decode(latents))

    state.pop("centre")
    save_file(state, tmp_path / "lacking.safetensors")
    with pytest.raises(WeightsError, match="centre"):
        VideoVAE.load(tmp_path / "lacking.safetensors", TINY)
    with pytest.raises(WeightsError, match="can't be read"):
        VideoVAE.load(tmp_path / "missing.safetensors", TINY)


def test_fitting_finds_the_best_components_and_normalises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vae_stage, "STATISTICS_CLIPS", 6)
    seen: list[int] = []
    stage = vae_stage.vae_stage(
        VideoVAEConfig(latent_channels=16), lambda what, done, total: seen.append(done), clips=8
    )
    assert seen == list(range(9))
    assert trainer.run(stage, tmp_path)

    vae = VideoVAE.load(tmp_path / "video_vae.safetensors", VideoVAEConfig(latent_channels=16))
    clips = [frames_of(vae_stage.speaker_clip(vae_stage.HELD_OUT + i, 9, 128, 128)[0]) for i in range(6)]
    frames = torch.cat(clips)
    with torch.inference_mode():
        latents = vae.encode(frames)
        error = (vae.decode(latents) - frames).square().mean()
        vae.components.copy_(torch.linalg.qr(torch.randn(CELL_SIZE, 16)).Q.T)
        by_chance = (vae.decode(vae.encode(frames)) - frames).square().mean()
    assert latents.mean(dim=(0, 2, 3, 4)).abs().max() < 0.05
    assert (latents.std(dim=(0, 2, 3, 4)) - 1).abs().max() < 0.05
    assert error < 0.2 * frames.var() < by_chance


@pytest.fixture(scope="module")
def shipped_psnr() -> tuple[float, float]:
    """Of four unseen speakers through the shipped VAE: dB of the whole picture and of the mouth."""
    vae = VideoVAE.load(SHIPPED, VideoVAEConfig())
    whole, mouth = [], []
    for i in range(4):
        clip, mouths = vae_stage.speaker_clip(vae_stage.HELD_OUT + 2000 + i, 9, 128, 128)
        with torch.inference_mode():
            frames = torch.from_numpy(clip).permute(3, 0, 1, 2)[None] / 127.5 - 1
            error = (vae.decode(vae.encode(frames)) - frames).square().mean(1)[0] / 4
        whole.append(-10 * error.mean().log10())
        mouth.append(-10 * error[torch.from_numpy(mouths) == 1].mean().log10())
    return float(np.mean(whole)), float(np.mean(mouth))


def test_shipped_weights_reach_their_bars(shipped_psnr: tuple[float, float]) -> None:
    whole, mouth = shipped_psnr
    assert whole >= 30 and mouth >= 26
