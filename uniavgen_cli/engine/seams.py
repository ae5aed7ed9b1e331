"""Evens out the squares of tokens where neighbours disagree, as a video codec does its blocks."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from uniavgen_cli.shapes import SIZE_MULTIPLE

BESIDE = 2  # pixels on either side of an edge by which its step is measured
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)  # along the edge: a step is the square's, not a hair's


def evened(levels: Tensor, reach: int, around: Tensor | None = None) -> Tensor:
    """Pictures (c, n, h, w) whose steps at the edges of tokens are shared out over `reach` pixels each way.

    `around` (c, h, w) is the picture they were made from, whose own edges stay; 16 pixels is the most.
    """
    if not reach:
        return levels
    reach = min(reach, SIZE_MULTIPLE // 2)
    change = levels.clone() if around is None else levels - around[:, None]
    _even_columns(change, reach)
    _even_columns(change.transpose(-1, -2), reach)
    return change if around is None else change + around[:, None]


def pixels_of(levels: Tensor) -> np.ndarray:
    """Levels of 0 to 255, (c, n, h, w), as frames (n, h, w, c) uint8."""
    return levels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def _even_columns(pictures: Tensor, reach: int) -> None:
    """In place, pictures (c, n, h, w), at columns that are multiples of a token's."""
    kernel = torch.tensor(_BINOMIAL, device=pictures.device, dtype=pictures.dtype).view(1, 1, -1)
    share = 0.5 * (torch.arange(reach, device=pictures.device, dtype=pictures.dtype) + 0.5) / reach
    for edge in range(SIZE_MULTIPLE, pictures.shape[-1], SIZE_MULTIPLE):
        after = pictures[..., edge : edge + BESIDE].mean(-1)
        step = after - pictures[..., edge - BESIDE : edge].mean(-1)  # (c, n, h)
        rows = F.pad(step.flatten(0, 1)[:, None], (2, 2), mode="replicate")
        step = F.conv1d(rows, kernel)[:, 0].view_as(step)[..., None]
        pictures[..., edge : edge + reach] -= step * share.flip(0)
        pictures[..., edge - reach : edge] += step * share
