"""How well a mouth goes with a sound: two curves over the same frames, compared.

The opening of the mouth is read from pixels (`opening.py` for drawn faces, `mouth.py` for any); what the
sound wants of a mouth is how loud it is, or how open the phonemes heard in it are spoken.
"""

import numpy as np

from uniavgen_cli.data.voice import mouth_track
from uniavgen_cli.evaluation.recogniser import Recogniser

MAX_LAG = 4  # frames, a quarter of a second at 16 fps
_FLOOR_DB = -40.0  # under the loudest frame: what is quieter opens no mouth


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


def sound_envelope(samples: np.ndarray, sample_rate: int, num_frames: int, fps: float) -> np.ndarray:
    """How loud mono samples (n,) are in each frame, float32 (num_frames,).

    0 at 40 dB under the loudest frame or quieter, 1 at the loudest; of two frames' length around each. A
    drawn mouth's opening goes with it at r = 0.79, with another sentence's at 0.01.
    """
    squares = np.concatenate([[0.0], np.cumsum(samples.astype(np.float64) ** 2)])
    middles = (np.arange(num_frames) + 0.5) / fps * sample_rate
    reach = sample_rate / fps
    first, last = (np.clip(np.rint(middles + r), 0, len(samples)).astype(int) for r in (-reach, reach))
    power = (squares[last] - squares[first]) / np.maximum(last - first, 1)
    decibels = 10 * np.log10(np.maximum(power, 1e-12) / max(power.max(initial=0.0), 1e-12))
    return np.clip(1 - decibels / _FLOOR_DB, 0, 1).astype(np.float32)


def heard_opening(samples: np.ndarray, num_frames: int, fps: float, recogniser: Recogniser) -> np.ndarray:
    """How open the phonemes heard in mono 24 kHz samples (n,) want a mouth, (num_frames,), 0 shut to 1.

    For the voices that the recogniser knows.
    """
    return mouth_track(recogniser.hear_timed(samples), num_frames, fps)[:, 0]
