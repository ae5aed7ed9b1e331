"""How well two curves over the same frames go together, such as two openings of a mouth."""

import numpy as np

MAX_LAG = 4  # frames, a quarter of a second at 16 fps


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson correlation of two curves (n,), frame by frame.

    From -1 to 1, higher is better: 1 when one is the other scaled and shifted in value, near 0 for curves
    that have nothing to do with each other, 0 when either never moves. Raises ValueError for other lengths.
    """
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"curves of shapes {one.shape} and {other.shape} can't be compared frame by frame")
    one, other = (curve.astype(np.float64) - curve.mean(dtype=np.float64) for curve in (one, other))
    size = float(np.sqrt((one @ one) * (other @ other)))
    return float(one @ other) / size if size > 1e-12 else 0.0


def best_lag(curve: np.ndarray, truth: np.ndarray, max_lag: int = MAX_LAG) -> tuple[int, float]:
    """The shift at which `curve` follows `truth` best, in frames, and the correlation there.

    The lag is within +-max_lag, positive when the curve comes late; nearer 0 is better. The correlation is
    over the frames that both have, so at least that of lag 0. Raises ValueError when fewer than three are
    left.
    """
    n = len(truth)
    if n - max_lag < 3:
        raise ValueError(f"{n} frames are too few to look {max_lag} away")
    found = {}
    for lag in sorted(range(-max_lag, max_lag + 1), key=abs):  # of equally good ones, the nearest
        late, early = max(lag, 0), max(-lag, 0)
        found[lag] = correlation(curve[late : n - early], truth[early : n - late])
    lag = max(found, key=lambda at: found[at])
    return lag, found[lag]
