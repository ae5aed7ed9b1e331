"""The drawn and spoken clips that nano's suite is measured on, and what stands beside them as a control."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, cycle

import numpy as np

from uniavgen_cli.config import Preset
from uniavgen_cli.data.avatar import Rendered
from uniavgen_cli.data.captions import Caption, describe
from uniavgen_cli.data.dataset import FPS, LENGTHS, SpeakingClip, sample_clip
from uniavgen_cli.data.voice import (
    TimedPhoneme,
    Voice,
    mouth_track,
    retime,
    sample_sentence,
    sample_voice,
    speak,
    time_phonemes,
)  # fmt: skip
from uniavgen_cli.engine.request import LEAD_S, TAIL_S

SEED = 9001  # training uses 1, the instruments 7 million and some
NUM_VOICES = 8
_SENTENCES = 40  # tried for one that is short enough


@dataclass(frozen=True)
class Case:
    """Clip `index` of the suite, and another clip, which is the control."""

    seed: int
    index: int
    clip: SpeakingClip
    other: SpeakingClip

    @cached_property
    def drawn(self) -> Rendered:
        return self.clip.draw()

    @cached_property
    def stranger(self) -> np.ndarray:
        """The other clip's pictures (n, h, w, 3)."""
        return self.other.draw().frames

    @cached_property
    def caption(self) -> Caption:
        """Words for the clip that name its emotion."""
        return self._described(self.clip.emotion, "emotion")

    @cached_property
    def calm_caption(self) -> Caption:
        """Words for the same person that ask for no emotion: a given voice has its own."""
        return self._described("neutral", "")

    def _described(self, emotion: str, named: str) -> Caption:
        for attempt in count():
            rng = np.random.default_rng([self.seed, self.index, 2, attempt])
            caption = describe(self.clip.identity, emotion, rng)
            if (named in caption.attributes) if named else ("emotion" not in caption.attributes):
                return caption
        raise AssertionError

    @cached_property
    def unbroken_other(self) -> tuple[np.ndarray, tuple[TimedPhoneme, ...]]:
        """The other clip's speech as long as this clip, without its silences."""
        return unbroken_speech(self.other, len(self.clip.samples))

    @cached_property
    def voices(self) -> tuple[list[np.ndarray], np.ndarray]:
        """Eight voices in a sentence each, the clip's own first, and the clip's text in its own voice.

        All speak calmly, as the emotion would tell them apart.
        """
        rng = np.random.default_rng([self.seed, self.index, 3])
        voices: list[Voice] = [self.clip.voice]
        while len(voices) < NUM_VOICES:
            voice = sample_voice(rng)
            if voice.name not in [known.name for known in voices]:
                voices.append(voice)
        sounds = [speak(sample_sentence(rng), voice).samples for voice in voices]
        return sounds, speak(self.clip.text, self.clip.voice).samples

    def next_text(self, room_s: float) -> str:
        """The first of some sentences that can be said within `room_s` seconds, silences and all.

        The shortest of them when none can.
        """
        lengths: dict[str, float] = {}
        for attempt in range(_SENTENCES):
            text = sample_sentence(np.random.default_rng([self.seed, self.index, 4, attempt]))
            lengths[text] = LEAD_S + time_phonemes(text)[-1].end_s + TAIL_S
            if lengths[text] <= room_s:
                return text
        return min(lengths, key=lambda text: lengths[text])


def cases(preset: Preset, seed: int, number: int) -> Iterator[Case]:
    """The first `number` cases of a seed, each the next one's control, the last one the first's."""
    unseen = unseen_clips(preset, seed)
    clips = [next(unseen) for _ in range(number)]
    for index, clip in enumerate(clips):
        yield Case(seed, index, clip, clips[index - 1])


def unseen_clips(preset: Preset, seed: int) -> Iterator[SpeakingClip]:
    """Drawn clips at the preset's size whose text, at the pace of generated speech, fits one of its clips."""
    side, most = preset.clip.short_side, preset.clip.max_frames
    lengths = [length for length in LENGTHS if length <= most]
    for index in count():
        clip = sample_clip(seed, index, lengths=lengths, sizes=[(side, side)])
        if LEAD_S + time_phonemes(clip.text)[-1].end_s + TAIL_S <= most / preset.clip.fps:
            yield clip


def planned_opening(phonemes: tuple[TimedPhoneme, ...], num_frames: int) -> np.ndarray:
    """How open phonemes want the mouth, (num_frames,) at the data's rate, 0 shut to 1."""
    return mouth_track(phonemes, num_frames, FPS)[:, 0]


def unbroken_speech(clip: SpeakingClip, num_samples: int) -> tuple[np.ndarray, tuple[TimedPhoneme, ...]]:
    """A clip's sentence and its reference one by turns, from the first sample to the last, and the phonemes.

    The control for another clip. The clip's own sound would not do: all clips are silent at both ends, which
    alone makes the openings of unrelated ones correlate at 0.16.
    """
    rate = clip.spec.sample_rate
    first, last = (round(time_s * rate) for time_s in (clip.phonemes[0].start_s, clip.phonemes[-1].end_s))
    sentence = clip.samples[first:last], retime(clip.phonemes, 0.0, (last - first) / rate)
    sounds: list[np.ndarray] = []
    timed: list[TimedPhoneme] = []
    spoken_s = 0.0
    for samples, phonemes in cycle((sentence, (clip.reference.samples, clip.reference.phonemes))):
        if spoken_s * rate >= num_samples:
            break
        sounds.append(samples)
        timed += retime(phonemes, spoken_s + phonemes[0].start_s, spoken_s + phonemes[-1].end_s)
        spoken_s += len(samples) / rate
    return np.concatenate(sounds)[:num_samples], tuple(timed)
