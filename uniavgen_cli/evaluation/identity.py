"""Whether the person stays the same."""

import numpy as np

from uniavgen_cli.evaluation.look import LookProbe

_LOOKED_AT = 8  # frames of a clip


def identity_likeness(frames: np.ndarray, reference: np.ndarray, probe: LookProbe) -> float:
    """How alike the drawn person of some frames and that of other frames are.

    A cosine from -1 to 1, higher is better: the same drawn person in other clothes has about 0.9, two people
    about 0. Both are (n, h, w, 3) uint8; the mean over up to eight frames, spread over the clip, against the
    reference's mean embedding. By the contrastive look probe, which knows drawn people alone.
    """
    who = probe.look(some(reference)).people.mean(0)
    return float((probe.look(some(frames)).people @ (who / np.linalg.norm(who))).mean())


def identity_drift(frames: np.ndarray, probe: LookProbe) -> float:
    """How much of the first frame's drawn person is left in the frame least like it.

    A cosine from -1 to 1, higher is better; a drawn clip has about 0.95. Frames (n, h, w, 3) uint8.
    """
    people = probe.look(some(frames)).people
    return float((people @ people[0]).min())


def some(frames: np.ndarray, most: int = _LOOKED_AT) -> np.ndarray:
    """At most `most` of the frames, the first and last among them."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, most).round().astype(int))]
