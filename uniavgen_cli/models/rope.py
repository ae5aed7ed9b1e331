"""Rotary position tables and how they turn the heads: interleaved pairs everywhere, float64 angles."""

from functools import lru_cache

import torch
from torch import Tensor

THETA = 10_000.0


def frame_share(head_dim: int) -> int:
    """Complex dimensions of a head that turn with the frame index; rows and columns halve the rest."""
    half = head_dim // 2
    return half - 2 * (half // 3)


def frequencies(dim: int, count: int | None = None) -> Tensor:
    """The `dim // 2` rotary frequencies of a part `dim` wide, or the first `count` of them; float64."""
    exponents = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu")[:count] / dim
    return THETA**-exponents


def _table(angles: Tensor, device: torch.device) -> Tensor:
    # Outside inference mode: a table first asked for while sampling must serve a later training step too.
    with torch.inference_mode(False):
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64).unsqueeze(1).to(device)


@lru_cache(maxsize=64)
def sequence_table(head_dim: int, length: int, device: torch.device) -> Tensor:
    """Turns of a 1-D sequence: (length, 1, head_dim / 2) complex."""
    positions = torch.arange(length, dtype=torch.float64, device="cpu")
    return _table(torch.outer(positions, frequencies(head_dim)), device)


@lru_cache(maxsize=64)
def video_table(
    head_dim: int, first: int, frames: int, rows: int, columns: int, device: torch.device
) -> Tensor:
    """Turns of video tokens in frames `first ...`: (frames * rows * columns, 1, head_dim / 2) complex.

    With `first` 0 and one frame the turn is spatial only.
    """
    in_frame, side = frame_share(head_dim), head_dim // 2 // 3

    def angles(start: int, count: int, part: int) -> Tensor:
        positions = torch.arange(start, start + count, dtype=torch.float64, device="cpu")
        return torch.outer(positions, frequencies(2 * part))

    shape = (frames, rows, columns)
    parts = (
        angles(first, frames, in_frame)[:, None, None].expand(*shape, -1),
        angles(0, rows, side)[None, :, None].expand(*shape, -1),
        angles(0, columns, side)[None, None, :].expand(*shape, -1),
    )
    return _table(torch.cat(parts, dim=-1).flatten(0, 2), device)


@lru_cache(maxsize=64)
def window_table(head_dim: int, length: int, device: torch.device) -> Tensor:
    """Turns of an audio window's keys: the frame part of the head only, at the audio table's frequencies.

    (length, 1, head_dim / 2) complex; the row and column parts stand still.
    """
    positions = torch.arange(length, dtype=torch.float64, device="cpu")
    turning = torch.outer(positions, frequencies(head_dim, frame_share(head_dim)))
    still = torch.zeros(length, head_dim // 2 - turning.shape[1], dtype=torch.float64, device="cpu")
    return _table(torch.cat((turning, still), dim=1), device)
