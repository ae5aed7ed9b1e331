"""Whether the person is drawn as it was asked for: hair, skin, glasses and background."""

from collections.abc import Mapping

import numpy as np

from uniavgen_cli.evaluation.identity import some
from uniavgen_cli.evaluation.look import ATTRIBUTES, LookProbe


def seen_attributes(frames: np.ndarray, probe: LookProbe) -> dict[str, str]:
    """What the person in frames (n, h, w, 3) uint8 looks like, by the keys of `ATTRIBUTES`.

    By the look probe's mean chances over up to eight frames; it knows drawn people alone.
    """
    seen = probe.look(some(frames)).attributes
    return {name: ATTRIBUTES[name][int(chances.mean(0).argmax())] for name, chances in seen.items()}


def attributes_right(seen: Mapping[str, str], asked: Mapping[str, str]) -> tuple[int, int]:
    """How many of the attributes asked for are seen, and how many were asked for of those the probe knows.

    Their quotient is a share from 0 to 1, higher is better.
    """
    known = [name for name in asked if name in seen]
    return sum(seen[name] == asked[name] for name in known), len(known)
