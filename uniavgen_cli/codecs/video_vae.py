"""The nano video VAE: 16x in space, 4x in time, the first frame alone, light enough for two CPU cores.

Axis letters: b batch, f pixel frames, l latent frames (f = 1 + 4 (l - 1)), c channels, h w rows and columns.
A latent frame describes four pixel frames; the first describes one, taken four times. A latent cell is 16x16
pixels of those four, and its channels are principal components of drawn cells: one linear map each way.
A network beside it gained a decibel in hours on few channels, and nothing on as many as these.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.shapes import SPATIAL_STRIDE, TEMPORAL_STRIDE

CELL_SIZE = TEMPORAL_STRIDE * 3 * SPATIAL_STRIDE**2  # numbers a cell describes


@dataclass(frozen=True, kw_only=True)
class VideoVAEConfig:
    """Sizes of the VAE; ValueError for more channels than a cell has numbers, or none."""

    latent_channels: int = 384

    def __post_init__(self) -> None:
        if not 1 <= self.latent_channels <= CELL_SIZE:
            raise ValueError(f"latent_channels {self.latent_channels} is outside 1..{CELL_SIZE}")


class VideoVAE(nn.Module):
    """Frames to latents and back; latents are normalised to zero mean and unit deviation a channel.

    `components` (c, CELL_SIZE) are orthonormal, the first those of most variance; `centre` (CELL_SIZE,) is
    the cell that they start from.
    """

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: VideoVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.components = nn.Parameter(torch.randn(config.latent_channels, CELL_SIZE) / CELL_SIZE**0.5)
        self.centre = nn.Parameter(torch.zeros(CELL_SIZE))
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
        cells = cells_of(frames.to(self.components.dtype))
        latents = ((cells - self.centre) @ self.components.T - self.latent_mean) / self.latent_std
        return latents.movedim(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (b, 3, 1 + 4k, h, w) in [-1, 1] of normalised latents (b, c, 1 + k, h/16, w/16)."""
        raw = latents.to(self.components.dtype).movedim(1, -1) * self.latent_std + self.latent_mean
        return frames_of(raw @ self.components + self.centre).clamp(-1, 1)


def check_frames(frames: Tensor) -> None:
    """Raise ValueError unless frames (b, c, f, h, w) are 1 + 4k with sides that are multiples of 16."""
    num_frames, height, width = frames.shape[2:]
    if (num_frames - 1) % TEMPORAL_STRIDE:
        raise ValueError(f"{num_frames} frames are not 1 + {TEMPORAL_STRIDE}k")
    if height % SPATIAL_STRIDE or width % SPATIAL_STRIDE:
        raise ValueError(f"a side of {height}x{width} is no multiple of {SPATIAL_STRIDE}")


def cells_of(frames: Tensor) -> Tensor:
    """Cells (b, l, h/16, w/16, CELL_SIZE) of frames (b, 3, f, h, w), the first of them four times."""
    check_frames(frames)
    still = frames[:, :, :1].expand(-1, -1, TEMPORAL_STRIDE - 1, -1, -1)
    return rearrange(torch.cat([still, frames], dim=2), _CELLS, **_SIZES)


def frames_of(cells: Tensor) -> Tensor:
    """Frames (b, 3, f, h, w) of cells (b, l, h/16, w/16, CELL_SIZE); the first is the last of its four."""
    outer, inner = _CELLS.split(" -> ")
    return rearrange(cells, f"{inner} -> {outer}", c=3, **_SIZES)[:, :, TEMPORAL_STRIDE - 1 :]


_CELLS = "b c (l t) (h p) (w q) -> b l h w (t c p q)"
_SIZES = {"t": TEMPORAL_STRIDE, "p": SPATIAL_STRIDE, "q": SPATIAL_STRIDE}
