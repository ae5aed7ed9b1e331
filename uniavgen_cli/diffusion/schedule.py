"""The times at which the sampler looks."""

import torch


def timesteps(steps: int, shift: float) -> tuple[float, ...]:
    """`steps` timesteps from 1000 down, then 0; a `shift` over 1 spends more of them where noise is high."""
    if steps < 1 or shift <= 0:
        raise ValueError(f"steps {steps} and shift {shift} must both be positive")
    # Rounded to float32 where the released model rounds, so that the numbers are its own.
    even = torch.linspace(1000, 1, steps, dtype=torch.float64).float() / 1000
    return (*(shift * even / (1 + (shift - 1) * even) * 1000).tolist(), 0.0)
