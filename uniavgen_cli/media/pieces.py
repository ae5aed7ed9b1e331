"""Long sequences of samples or frames that come in pieces and are never held whole."""

from collections.abc import Iterable, Iterator

import numpy as np

Samples = np.ndarray | Iterable[np.ndarray]  # (n,) or (n, channels), whole or in pieces
_PIECE = 1 << 18  # samples of silence at once


class Pieces:
    """A sequence that comes in arrays (n, ...), of which spans are taken, each beginning no earlier."""

    def __init__(self, source: Iterator[np.ndarray]) -> None:
        self._source = source
        self._held: list[np.ndarray] = []
        self._first = self._count = 0  # of what is held
        self.last: np.ndarray | None = None  # that came

    def take(self, start: int, count: int) -> list[np.ndarray]:
        """The arrays of `start` up to `start + count`, cut to it; fewer when the source ends."""
        if start < self._first:
            raise ValueError(f"{start} was let go, what is held begins at {self._first}")
        while self._first + self._count < start + count:
            piece = next(self._source, None)
            if piece is None:
                break
            self.last = piece
            self._held.append(piece)
            self._count += len(piece)
            self._let_go(start)
        self._let_go(start)
        taken, at = [], self._first
        for piece in self._held:
            taken.append(piece[max(0, start - at) : max(0, start + count - at)])
            at += len(piece)
        return [piece for piece in taken if len(piece)]

    def _let_go(self, start: int) -> None:
        while self._held and self._first + len(self._held[0]) <= start:
            self._first += len(self._held[0])
            self._count -= len(self._held.pop(0))

    def close(self) -> None:
        """End the program that reads, if one does."""
        if hasattr(self._source, "close"):
            self._source.close()


def pieces_of(samples: Samples) -> Iterator[np.ndarray]:
    """Samples piece by piece, also those that come as a whole."""
    return iter((samples,)) if isinstance(samples, np.ndarray) else iter(samples)


def fitted(samples: Samples, count: int) -> Iterator[np.ndarray]:
    """The first `count` samples piece by piece, padded with silence when there are fewer."""
    shape: tuple[int, ...] = ()
    for piece in pieces_of(samples):
        shape = piece.shape[1:]
        yield piece[:count]
        count -= len(piece[:count])
        if not count:
            return
    while count:
        yield np.zeros((min(count, _PIECE), *shape), np.float32)
        count -= min(count, _PIECE)
