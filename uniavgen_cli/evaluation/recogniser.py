"""A phoneme recogniser of our own, the instrument that hears what was said: one phoneme a mel frame.

It is trained here, on speech made from seeds that no model of ours trains on; recognisers from elsewhere do
not understand the synthetic voice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen_cli.codecs import mel
from uniavgen_cli.data.voice import (
    PHONEMES,
    PROSODY,
    TimedPhoneme,
    place_phonemes,
    sample_sentence,
    sample_voice,
    speak,
)
from uniavgen_cli.evaluation.probes import Report, kept, taught, unheard

SEED = 7_000_003  # apart from the seeds of model training
_HOP_S = mel.HOP / mel.SAMPLE_RATE
_SILENT = (PHONEMES.index(""), PHONEMES.index("pause"))
_CHANGE_COST = (
    4.0  # of another label than the last, in natural logarithms; errors on true sound: 9 % at 0, 3 % at 4
)


@dataclass(frozen=True, kw_only=True)
class RecogniserConfig:
    """`num_blocks` residual convolutions of width `dim` over 7 frames each, dilated 1 and 2 in turn."""

    dim: int = 192
    num_blocks: int = 6


class Recogniser(nn.Module):
    """Phoneme logits (b, t, len(PHONEMES)) of normalised mels (b, t, 80)."""

    def __init__(self, config: RecogniserConfig) -> None:
        super().__init__()
        self.embed = nn.Linear(mel.NUM_BINS, config.dim)
        self.blocks = nn.ModuleList(_Block(config.dim, 1 + i % 2) for i in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, len(PHONEMES))

    def forward(self, mels: Tensor) -> Tensor:
        x = self.embed(mels)  # (b, t, d)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.inference_mode()
    def recognise(self, mels: Tensor) -> tuple[str, ...]:
        """The phonemes heard in one normalised mel (t, 80), pauses left out."""
        return collapse(best_path(self(mels[None].float())[0].log_softmax(-1).numpy()))

    def hear(self, samples: np.ndarray) -> tuple[str, ...]:
        """The phonemes heard in mono 24 kHz samples (n,) of any loudness."""
        return self.recognise(normalised_mel(samples))

    @torch.inference_mode()
    def hear_timed(self, samples: np.ndarray) -> tuple[TimedPhoneme, ...]:
        """The same, each with when it is heard; silences count as pauses."""
        labels = best_path(self(normalised_mel(samples)[None])[0].log_softmax(-1).numpy())
        starts = [i for i, label in enumerate(labels) if i == 0 or label != labels[i - 1]]
        return tuple(
            TimedPhoneme(PHONEMES[labels[start]] or "pause", start * _HOP_S, end * _HOP_S)
            for start, end in zip(starts, [*starts[1:], len(labels)], strict=True)
        )


class _Block(nn.Module):
    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.around = nn.Conv1d(dim, dim, 7, padding=3 * dilation, dilation=dilation, groups=dim)
        self.wide = nn.Linear(dim, 3 * dim)
        self.back = nn.Linear(3 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.around(self.norm(x).transpose(1, 2)).transpose(1, 2)  # (b, t, d)
        return x + self.back(F.gelu(self.wide(y)))


def collapse(frames: Sequence[int]) -> tuple[str, ...]:
    """Frame labels to a phoneme sequence: runs joined, silences dropped."""
    runs = [label for here, label in enumerate(frames) if here == 0 or label != frames[here - 1]]
    return tuple(PHONEMES[label] for label in runs if label not in _SILENT)


def best_path(scores: np.ndarray) -> list[int]:
    """The labels (t,) of highest summed score (t, labels), each change costing `_CHANGE_COST` (Viterbi)."""
    if not len(scores):
        return []
    best = scores[0]
    came_from = []
    for now in scores[1:]:
        top = int(best.argmax())
        stays = best >= best[top] - _CHANGE_COST
        came_from.append(np.where(stays, np.arange(len(best)), top))
        best = np.maximum(best, best[top] - _CHANGE_COST) + now
    path = [int(best.argmax())]
    for previous in reversed(came_from):
        path.append(int(previous[path[-1]]))
    return path[::-1]


def said(timed: Sequence[TimedPhoneme]) -> tuple[str, ...]:
    """The reference sequence of timed phonemes, joined and cleaned as `collapse` does."""
    sequence: list[str] = []
    for phoneme in timed:
        if not sequence or phoneme.symbol != sequence[-1]:
            sequence.append(phoneme.symbol)
    return tuple(symbol for symbol in sequence if symbol not in ("", "pause"))


def edit_distance(heard: Sequence[str], reference: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions between two sequences (Levenshtein)."""
    row = list(range(len(reference) + 1))
    for i, symbol in enumerate(heard, 1):
        above = row
        row = [i]
        for j, wanted in enumerate(reference, 1):
            row.append(min(above[j] + 1, row[j - 1] + 1, above[j - 1] + (symbol != wanted)))
    return row[-1]


def train_recogniser(
    config: RecogniserConfig | None = None,
    *,
    steps: int = 1200,
    num_clips: int = 3000,
    batch_size: int = 16,
    seed: int = SEED,
    report: Report = unheard,
) -> Recogniser:
    """A recogniser trained on `num_clips` sentences made for it; about three minutes on one core."""
    clips: dict[int, tuple[Tensor, Tensor]] = {}

    def loss(model: Recogniser, rng: np.random.Generator) -> Tensor:
        chosen = rng.integers(num_clips, size=batch_size).tolist()
        for index in chosen:
            if index not in clips:
                clips[index] = labelled_clip(seed, index)
        mels, labels = _batch([clips[index] for index in chosen], rng)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(mels)
        return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-1)

    return taught(
        lambda: Recogniser(config or RecogniserConfig()),
        loss,
        steps=steps,
        seeds=(seed,),
        weight_decay=0.01,
        report=report,
    )


def labelled_clip(seed: int, index: int) -> tuple[Tensor, Tensor]:
    """Sentence `index` of a seed's data: normalised mel (t, 80) and its frames' phonemes (t,)."""
    rng = np.random.default_rng([seed, 1, index])
    spoken = speak(sample_sentence(rng), sample_voice(rng), str(rng.choice(list(PROSODY))))
    mels = normalised_mel(spoken.samples)
    return mels, torch.from_numpy(place_phonemes(spoken.phonemes, len(mels)))


def load_recogniser(path: Path, config: RecogniserConfig | None = None) -> Recogniser:
    """The recogniser kept at `path`; trained and kept there first when the file is missing."""
    config = config or RecogniserConfig()
    return kept(path, lambda: Recogniser(config), lambda: train_recogniser(config))


def normalised_mel(samples: np.ndarray) -> Tensor:
    """Normalised log-mel (t, 80) of mono 24 kHz samples (n,), brought to the usual peak first."""
    waveform = mel.peak_normalize(torch.from_numpy(np.ascontiguousarray(samples, np.float32))[None])
    return mel.normalize(mel.log_mel(waveform))[0]


_CROP = 160  # frames of a training sample


def _batch(clips: list[tuple[Tensor, Tensor]], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Crops with silence around them, other loudness, another tilt of the spectrum, and noise in half."""
    silence = mel.normalize(torch.tensor(np.log(1e-4))).item()
    mels = torch.full((len(clips), _CROP, mel.NUM_BINS), silence)
    labels = torch.zeros((len(clips), _CROP), dtype=torch.int64)
    for row, (clip, phonemes) in enumerate(clips):
        start = int(rng.integers(-20, max(1, len(clip) + 20 - _CROP)))
        first, last = max(0, start), min(len(clip), start + _CROP)
        mels[row, first - start : last - start] = clip[first:last]
        labels[row, first - start : last - start] = phonemes[first:last]
        tilt = rng.normal(0, 0.15) + rng.normal(0, 0.2) * np.linspace(-1, 1, mel.NUM_BINS)
        mels[row] += torch.from_numpy(tilt.astype(np.float32))
        if rng.random() < 0.5:
            noise = rng.uniform(0, 0.35) * rng.standard_normal((_CROP, mel.NUM_BINS))
            mels[row] += torch.from_numpy(noise.astype(np.float32))
    return mels, labels
