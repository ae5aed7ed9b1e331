"""How well what was said can be understood."""

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen_cli.data.voice import TimedPhoneme
from uniavgen_cli.evaluation.recogniser import Recogniser, edit_distance, said

WHISPER_RATE = 16_000
_WHISPER_S = 30  # of sound it takes at once


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


def word_error_rate(samples: np.ndarray, text: str, whisper: Path) -> float:
    """Errors a word meant, of mono 16 kHz `samples` (n,) that should say `text`, as Whisper hears them.

    A share, 0 or more; lower is better. Whisper (arXiv 2212.04356) is read from the folder `whisper`, as
    transformers writes it; it knows people's voices, and hears the drawn world's badly.
    """
    return error_rate([words(transcript(samples, whisper))], [words(text)])


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def transcript(samples: np.ndarray, whisper: Path) -> str:
    """What the Whisper model in the folder `whisper` hears in mono 16 kHz samples (n,)."""
    import torch

    processor, model = _whisper(whisper)
    parts = []
    for start in range(0, len(samples), _WHISPER_S * WHISPER_RATE):
        part = samples[start : start + _WHISPER_S * WHISPER_RATE]
        features = processor(part, sampling_rate=WHISPER_RATE, return_tensors="pt").input_features
        with torch.inference_mode():
            tokens = model.generate(features.to(model.dtype))
        parts.append(processor.batch_decode(tokens, skip_special_tokens=True)[0].strip())
    return " ".join(parts)


@lru_cache(maxsize=1)
def _whisper(folder: Path) -> tuple[Any, Any]:
    from transformers import WhisperForConditionalGeneration, WhisperProcessor

    processor = WhisperProcessor.from_pretrained(folder, local_files_only=True)
    model = WhisperForConditionalGeneration.from_pretrained(folder, local_files_only=True)
    return processor, model.eval()
