"""Which emotion is seen in a face and heard in a voice."""

import numpy as np

from uniavgen_cli.data.avatar import EMOTIONS
from uniavgen_cli.evaluation.expression import ExpressionProbe
from uniavgen_cli.evaluation.identity import some
from uniavgen_cli.evaluation.opening import OpeningReader
from uniavgen_cli.evaluation.tone import ToneProbe


def seen_emotion(frames: np.ndarray, probe: ExpressionProbe, locator: OpeningReader) -> tuple[str, float]:
    """The emotion a drawn face shows over frames (n, h, w, 3) uint8, and how sure the probe is of it.

    One of seven, with a chance from 1/7 to 1; right is better, and one time in seven is chance. By the mean
    logarithm of the expression probe's chances over up to 16 frames, as the mouth speaks over the expression.
    """
    return _likeliest(probe.read(some(frames, 16), locator))


def heard_emotion(samples: np.ndarray, probe: ToneProbe) -> tuple[str, float]:
    """The emotion heard in mono 24 kHz samples (n,), and how sure the probe is of it.

    One of seven, with a chance from 1/7 to 1; right is better, and one time in seven is chance. By the tone
    probe, which knows the seven manners in which this world's voices speak.
    """
    return _likeliest(probe.listen(samples).emotions[None])


def _likeliest(chances: np.ndarray) -> tuple[str, float]:
    """The emotion of chances (n, 7), and its share of them."""
    scores = np.log(np.maximum(chances, 1e-4)).mean(0)
    shares = np.exp(scores - scores.max())
    best = int(shares.argmax())
    return EMOTIONS[best], float(shares[best] / shares.sum())
