"""How well what was said can be understood."""

from collections.abc import Sequence

import numpy as np

from uniavgen_cli.data.voice import TimedPhoneme
from uniavgen_cli.evaluation.recogniser import Recogniser, edit_distance, said


def phoneme_error_rate(samples: np.ndarray, timed: Sequence[TimedPhoneme], recogniser: Recogniser) -> float:
    """Errors a phoneme meant, of mono 24 kHz `samples` (n,) that should say `timed`.

    A share, 0 or more (1 when nothing is heard, above 1 when more is heard than was meant); lower is better,
    and the recogniser's own floor on true sound is about 0.03. It is speech recognition's word error rate
    (Levenshtein 1966) on phonemes, by a recogniser that knows this world's voices.
    """
    return error_rate([recogniser.hear(samples)], [said(timed)])


def error_rate(heard: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Errors of many utterances over the phonemes they should hold: long ones count for more."""
    errors = sum(edit_distance(h, r) for h, r in zip(heard, references, strict=True))
    return errors / max(1, sum(len(reference) for reference in references))
