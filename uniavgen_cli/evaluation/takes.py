"""Which of several takes of one clip is best: by what can be measured without a truth."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from uniavgen_cli.config import DEFAULT_PRESET, base_name
from uniavgen_cli.engine.engine import Clip
from uniavgen_cli.engine.provenance import given_files
from uniavgen_cli.evaluation import synchrony
from uniavgen_cli.evaluation.instruments import Instruments
from uniavgen_cli.evaluation.loudness import clipped_share
from uniavgen_cli.evaluation.mouth import mouth_contrast
from uniavgen_cli.evaluation.recogniser import Recogniser
from uniavgen_cli.evaluation.runner import MOST_S, pictures_of, shows_drawn
from uniavgen_cli.evaluation.speech import phoneme_error_rate
from uniavgen_cli.media.audio import read_audio

_CLIPPED_WEIGHT = 10.0  # a tenth of the samples clipped is as bad as a mouth that goes its own way


def score_take(clip: Clip, instruments: Instruments) -> dict[str, Any]:
    """What is measured of a take that was made, and under "score" the sum by which takes are compared.

    The score has no unit, higher is better, 1 is about the most: the correlation of the mouth with the sound
    (with the phonemes heard in it, where the recogniser knows the voice, else with its loudness; -1 where no
    face is found), less the phoneme error rate, less ten times the share of clipped samples. What there is no
    instrument for counts nothing, in every take alike. Of a long clip the first minute counts.
    """
    request = clip.plan.request
    frames = np.stack(list(islice(clip.reel.frames(), round(MOST_S * clip.fps))))
    samples = _first(clip.reel.sound(), round(MOST_S * clip.sample_rate))
    if request.task == "animate" and request.sound is not None:
        samples = read_audio(request.sound, clip.sample_rate, duration_s=MOST_S)
    drawn = _is_drawn(clip)
    # nano's own voice is known, whoever's picture it is given; a recording's is not
    ours = base_name(clip.plan.preset) == DEFAULT_PRESET and request.task != "animate"
    recogniser = instruments.recogniser if ours else None
    found: dict[str, Any] = {}
    opening = instruments.opening.read(frames) if drawn and instruments.opening else mouth_contrast(frames)
    if opening is None:
        found["opening"] = -1.0
    elif len(samples):
        found["opening"] = synchrony.correlation(opening, _wanted(samples, clip, len(frames), recogniser))
    if recogniser is not None and clip.plan.phonemes and clip.num_frames == len(frames):
        found["phoneme_errors"] = phoneme_error_rate(samples, clip.plan.phonemes, recogniser)
    found["clipped"] = clipped_share(samples)
    score = found.get("opening", 0.0) - found.get("phoneme_errors", 0.0) - _CLIPPED_WEIGHT * found["clipped"]
    return {"score": round(score, 4), **{name: round(float(value), 4) for name, value in found.items()}}


def _first(pieces: Iterator[np.ndarray], count: int) -> np.ndarray:
    """The first `count` samples of pieces (n,), of which no more are made than that takes."""
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < count and (piece := next(pieces, None)) is not None:
        kept.append(piece)
    return np.concatenate(kept or [np.zeros(0, np.float32)])[:count]


def _is_drawn(clip: Clip) -> bool:
    if base_name(clip.plan.preset) != DEFAULT_PRESET:
        return False
    given = given_files(clip.plan.request)
    picture = given.get("face") or given.get("video")
    return picture is None or shows_drawn(pictures_of(picture))


def _wanted(samples: np.ndarray, clip: Clip, num_frames: int, recogniser: Recogniser | None) -> np.ndarray:
    """How open the sound wants the mouth."""
    if recogniser is not None:
        return synchrony.heard_opening(samples, num_frames, clip.fps, recogniser)
    return synchrony.sound_envelope(samples, clip.sample_rate, num_frames, clip.fps)
