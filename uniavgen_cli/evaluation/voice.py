"""How like two voices are."""

from collections.abc import Sequence

import numpy as np

from uniavgen_cli.evaluation.tone import ToneProbe


def voice_likeness(samples: np.ndarray, reference: np.ndarray, probe: ToneProbe) -> float:
    """How alike the voices of two sounds are, whatever they say.

    A cosine from -1 to 1, higher is better: one voice in two sentences has about 0.8, two voices about 0.
    Both are mono 24 kHz samples (n,); by the contrastive tone probe, which knows this world's voices alone.
    """
    return float(probe.listen(samples).voice @ probe.listen(reference).voice)


def nearest_voice(samples: np.ndarray, references: Sequence[np.ndarray], probe: ToneProbe) -> int:
    """Which of some voices a sound is most like: its index. Of n, 1 / n is chance; right is better."""
    voice = probe.listen(samples).voice
    return int(np.argmax([probe.listen(reference).voice @ voice for reference in references]))
