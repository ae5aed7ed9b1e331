"""Given sound and pictures read once, in order, a window at a time: memory holds one window of them."""

import os
from collections.abc import Iterator

import numpy as np

from uniavgen_cli.media.audio import iter_audio
from uniavgen_cli.media.pieces import Pieces

SILENT = 1e-4  # of full scale: a sound that never reaches it is silence


class SoundReader:
    """A file's sound, mono at `sample_rate`."""

    def __init__(self, path: str | os.PathLike[str], sample_rate: int) -> None:
        self._pieces = Pieces(iter_audio(path, sample_rate))

    def take(self, start: int, count: int) -> np.ndarray:
        """Samples (count,) float32 from sample `start` on, silence after the end. Raises InputError."""
        samples = np.zeros(count, np.float32)
        taken = self._pieces.take(start, count)
        if taken:
            sound = np.concatenate(taken)
            samples[: len(sound)] = sound
        return samples

    def close(self) -> None:
        self._pieces.close()


class FrameReader:
    """Frames (h, w, 3) uint8 that come one by one."""

    def __init__(self, frames: Iterator[np.ndarray]) -> None:
        self._pieces = Pieces(frame[None] for frame in frames)

    def take(self, start: int, count: int) -> np.ndarray:
        """Frames (count, h, w, 3) uint8 from frame `start` on; the last picture stands still after the end.

        Where none came (0, 0, 0, 3). Raises InputError.
        """
        taken = self._pieces.take(start, count)
        if self._pieces.last is None:
            return np.zeros((0, 0, 0, 3), np.uint8)
        return np.concatenate([*taken, *[self._pieces.last] * (count - len(taken))])

    def close(self) -> None:
        self._pieces.close()


def peak_of(path: str | os.PathLike[str], sample_rate: int) -> float:
    """The largest absolute sample of a file's sound at that rate, read a piece at a time."""
    pieces = iter_audio(path, sample_rate)
    return max((float(np.abs(piece).max(initial=0.0)) for piece in pieces), default=0.0)


def is_silent(path: str | os.PathLike[str], sample_rate: int) -> bool:
    """Whether nothing is heard in a file's sound; read up to where something is."""
    pieces = iter_audio(path, sample_rate)
    return not any(np.abs(piece).max(initial=0.0) >= SILENT for piece in pieces)


def spoken_part(
    path: str | os.PathLike[str], sample_rate: int, seconds: float, quiet: float
) -> tuple[np.ndarray, float]:
    """The first `seconds` of a voice from where it begins, (n,), and how long it speaks in all.

    It speaks from the first to the last sample above `quiet` of its peak; of silence (0,) and 0.
    """
    peak = peak_of(path, sample_rate)
    if peak < SILENT:
        return np.zeros(0, np.float32), 0.0
    most = round(seconds * sample_rate)
    kept: list[np.ndarray] = []
    first, last, at, held = -1, 0, 0, 0
    for piece in iter_audio(path, sample_rate):
        loud = np.flatnonzero(np.abs(piece) > quiet * peak)
        if len(loud):
            first, last = at + int(loud[0]) if first < 0 else first, at + int(loud[-1])
        if first >= 0 and held < most:
            kept.append(piece[max(0, first - at) :][: most - held])
            held += len(kept[-1])
        at += len(piece)
    count = last + 1 - first
    return np.concatenate(kept)[:count], count / sample_rate
