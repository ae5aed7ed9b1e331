"""Squares of tokens go over into each other; what was an edge in the given picture stays one."""

import pytest
import torch

from uniavgen_cli.engine.seams import evened


def squares() -> torch.Tensor:
    """Two frames (3, 2, 64, 96) of squares of 32 pixels, each of one grey."""
    generator = torch.Generator().manual_seed(0)
    greys = torch.rand(3, 2, 2, 3, generator=generator) * 200
    return greys.repeat_interleave(32, -1).repeat_interleave(32, -2)


def steps(pictures: torch.Tensor) -> float:
    """The largest step between neighbours across columns."""
    return float(pictures.diff(dim=-1).abs().max())


def test_a_step_between_squares_is_shared_out() -> None:
    pictures = squares()
    made = evened(pictures, 10)
    assert steps(made[..., 12:20, :]) < 0.15 * steps(pictures)
    assert steps(made.transpose(-1, -2)[..., 12:20, :]) < 0.15 * steps(pictures.transpose(-1, -2))
    assert torch.equal(made[..., 12:20, 12:20], pictures[..., 12:20, 12:20])  # far from every edge
    assert torch.equal(evened(pictures, 0), pictures)


def test_the_edges_of_the_given_picture_stay() -> None:
    given = squares()[:, 0]
    still = given[:, None].repeat(1, 2, 1, 1)
    assert torch.allclose(evened(still, 10, given), still, atol=1e-4)
    moved = still.clone()
    moved[..., :32, :32] += 40  # a token that went its own way
    made = evened(moved, 10, given) - given[:, None]
    assert steps(made[..., 12:20, :]) < 6
    assert float(made[:, :, 12:20, 12:20].mean()) == pytest.approx(40)
