"""A probe that listens to one speaker of the drawn world: whose voice it is, and in which emotion it speaks.

One small network with two heads, trained here in a few minutes on voices and sentences that no model of ours
trains on. Whose voice it is, it learns from pairs of other sentences in one voice (contrastively).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen_cli.codecs import mel
from uniavgen_cli.data.avatar import EMOTIONS
from uniavgen_cli.data.voice import sample_sentence, sample_voice, speak
from uniavgen_cli.evaluation.look import contrast
from uniavgen_cli.evaluation.probes import Report, kept, taught, unheard
from uniavgen_cli.evaluation.recogniser import normalised_mel

SEED = 7_000_081  # apart from the seeds of model training
UTTERANCES = 4  # of each voice, two of them in the same emotion
_CROP = 180  # mel frames of a training sample, at 100 a second


@dataclass(frozen=True)
class Tone:
    """What is heard in a sound: the chances of emotions (7,) and the voice's embedding (48,) of length 1."""

    emotions: np.ndarray
    voice: np.ndarray


class ToneProbe(nn.Module):
    """Normalised mels (n, t, 80) to logits of emotions (n, 7) and embeddings of voices (n, 48)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_layer(mel.NUM_BINS, 128, 2), *_layer(128, 128, 2), *_layer(128, 128, 1), *_layer(128, 128, 1)
        )
        self.hidden = nn.Sequential(nn.Linear(256, 160), nn.GELU())
        self.emotions = nn.Linear(160, len(EMOTIONS))
        self.voices = nn.Linear(160, 48)

    def forward(self, mels: Tensor) -> tuple[Tensor, Tensor]:
        x = self.layers(mels.transpose(1, 2))  # (n, 128, t / 4)
        x = self.hidden(torch.cat([x.mean(-1), x.std(-1)], -1))
        return self.emotions(x), F.normalize(self.voices(x), dim=-1)

    @torch.inference_mode()
    def listen(self, samples: np.ndarray) -> Tone:
        """What is heard in mono 24 kHz samples (n,) of any loudness, silence at both ends left aside."""
        emotions, voice = self(spoken_part(normalised_mel(samples))[None])
        return Tone(emotions[0].softmax(-1).numpy(), voice[0].numpy())


def _layer(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv1d(before, after, 5, stride, padding=2), nn.GroupNorm(8, after), nn.GELU()


def spoken_part(mels: Tensor) -> Tensor:
    """Normalised mels (t, 80) from the first loud frame to the last; all of them when none stands out."""
    level = mels.mean(-1)
    quiet, loud = level.quantile(0.02), level.quantile(0.95)
    frames = torch.nonzero(level > quiet + 0.3 * (loud - quiet)).flatten()
    if len(frames) < 20:
        return mels
    return mels[int(frames[0]) : int(frames[-1]) + 1]


@dataclass(frozen=True)
class Speaker:
    """Sentences in one voice: normalised mels, each (t, 80), and the emotion of each."""

    mels: list[Tensor]
    emotions: list[int]


def spoken_voice(seed: int, number: int, utterances: int = UTTERANCES) -> Speaker:
    """Voice `number` of a seed: some sentences, the first two in the same emotion."""
    rng = np.random.default_rng([seed, number])
    voice = sample_voice(rng)
    emotions = rng.permutation(len(EMOTIONS))[: max(1, utterances - 1)].tolist()
    emotions = [emotions[0], *emotions][:utterances]
    mels = []
    for emotion in emotions:
        sound = speak(sample_sentence(rng), voice, EMOTIONS[emotion]).samples
        mels.append(spoken_part(normalised_mel(sound)))
    return Speaker(mels, emotions)


def train_tone_probe(
    *,
    steps: int = 2400,
    num_voices: int = 2000,
    batch_size: int = 24,
    seed: int = SEED,
    report: Report = unheard,
) -> ToneProbe:
    """A probe trained on `num_voices` made for it, in pairs of sentences; about five minutes on one core."""
    speakers = [spoken_voice(seed, number) for number in range(num_voices)]
    return taught(
        ToneProbe,
        lambda probe, rng: _loss(probe, speakers, batch_size, rng),
        steps=steps,
        seeds=(seed, num_voices),
        report=report,
    )


def load_tone_probe(path: Path) -> ToneProbe:
    """The probe kept at `path`; trained and kept there first when the file is missing."""
    return kept(path, ToneProbe, train_tone_probe)


def _loss(probe: ToneProbe, speakers: list[Speaker], batch_size: int, rng: np.random.Generator) -> Tensor:
    mels, emotions = [], []
    for number in rng.choice(len(speakers), size=min(batch_size, len(speakers)), replace=False):
        speaker = speakers[number]
        for i in rng.choice(len(speaker.mels), size=2, replace=False):
            mels.append(_crop(speaker.mels[i], rng))
            emotions.append(speaker.emotions[i])
    felt, voices = probe(torch.stack(mels))
    return F.cross_entropy(felt, torch.tensor(emotions)) + 0.5 * contrast(voices)


def _crop(mels: Tensor, rng: np.random.Generator) -> Tensor:
    """A crop (180, 80), short sentences said over again; another tilt of the spectrum, and noise in half."""
    again = mels.repeat(-(-_CROP // len(mels)), 1)
    start = int(rng.integers(len(again) - _CROP + 1))
    tilt = rng.normal(0, 0.1) + rng.normal(0, 0.12) * np.linspace(-1, 1, mel.NUM_BINS)
    crop = again[start : start + _CROP] + torch.from_numpy(tilt.astype(np.float32))
    if rng.random() < 0.5:
        noise = rng.uniform(0, 0.3) * rng.standard_normal((_CROP, mel.NUM_BINS))
        crop = crop + torch.from_numpy(noise.astype(np.float32))
    return crop
