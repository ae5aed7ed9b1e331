"""The nano video VAE: 16x in space, 4x in time, the first frame alone, light enough for two CPU cores.

Axis letters: b batch, f pixel frames, l latent frames (f = 1 + 4 (l - 1)), c channels, h w rows and columns.
Each latent frame describes four pixel frames; the first describes one, which the encoder sees four times.
Nearly all work is in 2-D convolutions on the four frames stacked as channels; a causal convolution over
latent frames, at the lowest resolution of the decoder, joins one group of four smoothly to the next.
Beside the convolutions runs a plain linear map of each cell, from whose principal components training starts.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.shapes import SPATIAL_STRIDE, TEMPORAL_STRIDE

PATCH = 4  # pixels that become channels before the first convolution, each way
CELL = SPATIAL_STRIDE // PATCH  # such patches a latent cell, each way
GROUP_CHANNELS = 3 * TEMPORAL_STRIDE * PATCH**2
UPSCALE_CHUNK = 8  # latent frames decoded to pixels at once, so that memory does not grow with the clip


@dataclass(frozen=True, kw_only=True)
class VideoVAEConfig:
    """Sizes of the VAE.

    `widths` are channels at 1/4, 1/8 and 1/16 of the picture's side; the block counts belong to the same
    scales. Raises ValueError when they do not make three scales.
    """

    latent_channels: int = 32
    widths: tuple[int, ...] = (96, 128, 128)
    encoder_blocks: tuple[int, ...] = (1, 1, 1)
    decoder_blocks: tuple[int, ...] = (2, 2, 0)

    def __post_init__(self) -> None:
        for name in ("widths", "encoder_blocks", "decoder_blocks"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            if PATCH * 2 ** (len(getattr(self, name)) - 1) != SPATIAL_STRIDE:
                raise ValueError(f"{name} {getattr(self, name)} needs 3 entries, one a scale")


class VideoVAE(nn.Module):
    """Frames to latents and back; latents are normalised to zero mean and unit deviation a channel."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.register_buffer("latent_mean", torch.zeros(config.latent_channels))
        self.register_buffer("latent_std", torch.ones(config.latent_channels))

    @classmethod
    def load(cls, path: Path, config: VideoVAEConfig) -> "VideoVAE":
        """The VAE with the weights at `path`, float32, evaluation mode; WeightsError when they don't fit."""
        return load_module(lambda: cls(config), path)

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents (b, c, 1 + k, h/16, w/16) of frames (b, 3, 1 + 4k, h, w) in [-1, 1].

        Latent frame i depends on its own pixel frames alone. Raises ValueError for another frame count, or
        sides that are no multiples of 16.
        """
        latents = self.encoder(frames.to(self.latent_mean.dtype))
        return (latents - _per_channel(self.latent_mean)) / _per_channel(self.latent_std)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (b, 3, 1 + 4k, h, w) in [-1, 1] of normalised latents (b, c, 1 + k, h/16, w/16)."""
        latents = latents.to(self.latent_mean.dtype)
        return self.decoder(latents * _per_channel(self.latent_std) + _per_channel(self.latent_mean)).clamp(
            -1, 1
        )

    def forward(self, frames: Tensor, noise: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training's pass: unclamped frames (b, 3, f, h, w) from noised raw latents, and those latents clean.

        A clip's noise has a deviation between 0 and `noise`, beside raw latents that the loss keeps at unit
        scale; `generator` is a CPU one.
        """
        latents = self.encoder(frames)
        deviation = noise * torch.rand(len(latents), 1, 1, 1, 1, generator=generator)
        disturbance = deviation * torch.randn(latents.shape, generator=generator)
        return self.decoder(latents + disturbance.to(latents.device)), latents


def check_frames(frames: Tensor) -> None:
    """Raise ValueError unless frames (b, c, f, h, w) are 1 + 4k with sides that are multiples of 16."""
    num_frames, height, width = frames.shape[2:]
    if (num_frames - 1) % TEMPORAL_STRIDE:
        raise ValueError(f"{num_frames} frames are not 1 + {TEMPORAL_STRIDE}k")
    if height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
        raise ValueError(f"a side of {height}x{width} is no multiple of {SPATIAL_STRIDE}")


class Encoder(nn.Module):
    """Groups of four frames to raw latents, each group by itself."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        widths = config.widths
        self.linear = nn.Conv2d(GROUP_CHANNELS, config.latent_channels, CELL, stride=CELL)
        self.stem = nn.Conv2d(GROUP_CHANNELS, widths[0], 3, padding=1)
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            if i:
                stages.append(nn.Conv2d(widths[i - 1], width, 2, stride=2))
            stages += [ResidualBlock(width) for _ in range(config.encoder_blocks[i])]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Conv2d(widths[-1], config.latent_channels, 1)

    def forward(self, frames: Tensor) -> Tensor:
        """Raw latents (b, c, l, h/16, w/16) of frames (b, 3, f, h, w)."""
        check_frames(frames)
        groups = grouped(frames).contiguous(memory_format=torch.channels_last)
        latents = self.linear(groups) + self.head(F.relu(self.stages(self.stem(groups))))
        return rearrange(latents, "(b l) c h w -> b c l h w", b=frames.shape[0])


class Decoder(nn.Module):
    """Raw latents to frames; a latent frame's pixels depend on it and on earlier ones."""

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        blocks = config.decoder_blocks[::-1]
        self.linear = nn.Conv2d(config.latent_channels, GROUP_CHANNELS * CELL**2, 1)
        self.stem = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.history = CausalBlock(widths[0])
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            if i:
                stages += [nn.Conv2d(widths[i - 1], 4 * width, 1), nn.PixelShuffle(2)]
            stages += [ResidualBlock(width) for _ in range(blocks[i])]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Conv2d(widths[-1], GROUP_CHANNELS, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        """Frames (b, 3, f, h, w) of raw latents (b, c, l, h/16, w/16)."""
        batch = latents.shape[0]
        x = rearrange(latents, "b c l h w -> (b l) c h w").contiguous(memory_format=torch.channels_last)
        deep = self.history(self.stem(x), batch)
        # From here on every latent frame is by itself, so a long clip goes through in chunks.
        chunk = UPSCALE_CHUNK * batch
        groups = torch.cat(
            [
                F.pixel_shuffle(self.linear(flat), CELL) + self.head(F.relu(self.stages(part)))
                for flat, part in zip(x.split(chunk), deep.split(chunk), strict=True)
            ]
        )
        frames = rearrange(
            groups,
            "(b l) (t c p q) h w -> b c (l t) (h p) (w q)",
            b=batch,
            t=TEMPORAL_STRIDE,
            p=PATCH,
            q=PATCH,
        )
        return frames[:, :, TEMPORAL_STRIDE - 1 :]  # the first group is one frame seen four times


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))), starting as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(F.relu(x))))


class CausalBlock(nn.Module):
    """x + what the two latent frames before it and itself say; the time before the first is zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3 * width, width, 1)
        self.second = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        now = rearrange(F.relu(x), "(b l) c h w -> b l c h w", b=batch)
        ago = F.pad(now, (0, 0, 0, 0, 0, 0, 2, 0))  # two latent frames of zeros before the clip
        steps = rearrange(torch.cat([ago[:, :-2], ago[:, 1:-1], now], dim=2), "b l c h w -> (b l) c h w")
        return x + self.second(F.relu(self.first(steps.contiguous(memory_format=torch.channels_last))))


def grouped(frames: Tensor) -> Tensor:
    """Frames (b, 3, f, h, w), the first four times, in fours with patches as channels (b*l, c, h/4, w/4)."""
    still = frames[:, :, :1].expand(-1, -1, TEMPORAL_STRIDE - 1, -1, -1)
    return rearrange(
        torch.cat([still, frames], dim=2),
        "b c (l t) (h p) (w q) -> (b l) (t c p q) h w",
        t=TEMPORAL_STRIDE,
        p=PATCH,
        q=PATCH,
    )


def _per_channel(statistics: Tensor) -> Tensor:
    return statistics.view(1, -1, 1, 1, 1)
