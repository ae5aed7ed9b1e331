"""How much a continued clip jumps where its new part begins, held against how it moves of itself."""

import numpy as np
import torch

from uniavgen_cli.codecs import mel

_AROUND = 2  # mel frames on either side of the seam, 20 ms, in which its step may fall


def picture_seam(given: np.ndarray, new: np.ndarray) -> float:
    """The step from the last given frame to the first new one, over the mean step inside the given part.

    A ratio from 0 up, lower is better and 1 unnoticed; frames (n, h, w, 3) uint8 of one size, steps are mean
    absolute differences of pixels. Raises ValueError when fewer than two frames are given.
    """
    if len(given) < 2 or not len(new):
        raise ValueError(f"{len(given)} given and {len(new)} new frames have no steps to compare")
    inside = np.mean([_step(one, next_) for one, next_ in zip(given[:-1], given[1:], strict=True)])
    return float(_step(given[-1], new[0]) / max(float(inside), 1e-3))


def sound_seam(given: np.ndarray, new: np.ndarray) -> float:
    """The largest step of the spectrum within 20 ms of the seam, over the same inside the given part.

    A ratio from 0 up, lower is better and 1 unnoticed; mono 24 kHz samples (n,). A step is the mean absolute
    difference of log-mel bins 10 ms apart; inside it is the mean of the largest in as many neighbours.
    Raises ValueError for a given part shorter than a tenth of a second.
    """
    if len(given) < 2400 or not len(new):
        raise ValueError(f"{len(given)} given and {len(new)} new samples have no steps to compare")
    joined = np.concatenate([given, new]).astype(np.float32)
    # clamped: digital silence is 60 dB under any room and would make a small noise a great step
    mels = mel.log_mel(torch.from_numpy(joined)[None])[0].clamp_min(float(np.log(1e-3))).numpy()
    steps = np.abs(np.diff(mels, axis=0)).mean(1)  # from frame i to i + 1
    seam = len(given) // mel.HOP
    largest = np.array([steps[max(0, i - _AROUND) : i + _AROUND].max() for i in range(_AROUND, len(steps))])
    inside = largest[: max(1, seam - 3 * _AROUND)].mean()
    return float(largest[min(seam - _AROUND, len(largest) - 1)] / max(float(inside), 1e-3))


def _step(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float32) - other.astype(np.float32)).mean())
