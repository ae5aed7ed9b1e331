"""Drawn, speaking clips: everything about clip `index` of a data set follows from its seed and index."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from uniavgen_cli.data.avatar import (
    EMOTIONS,
    MOUTH_PARAMETERS,
    Identity,
    Motion,
    Rendered,
    render,
    sample_identity,
    sample_motion,
)
from uniavgen_cli.data.captions import Caption, describe
from uniavgen_cli.data.voice import (
    Spoken,
    TimedPhoneme,
    Voice,
    mouth_track,
    place_phonemes,
    sample_sentence,
    sample_voice,
    speak,
)
from uniavgen_cli.shapes import ClipSpec

FPS = 16
MEL_HZ = 100
LENGTHS = (33, 49, 81)  # pixel frames; a clip takes the shortest that holds its speech
SIZES = ((128, 128),)  # a face that is found is seen in a square, whatever the picture's shape
SCALE, PLACE = 0.98, (0.0, 0.515)  # of a drawn face as large and in the place as close-ups show faces,
FOUND = 0.4  # and the share of how people differ in both that a detector's errors leave
REFERENCE_TOKENS = 250  # of another sentence in the same voice
PICTURES = 1  # a stream of random numbers of its own beside the clips'


@dataclass(frozen=True, kw_only=True)
class SpeakingClip:
    """One clip before it is drawn: who, how, what is said and when.

    `samples` is (spec.num_samples,) float32 with the speech at `phonemes`' times, silence around it;
    `reference` is another sentence in the same voice, unpadded.
    """

    spec: ClipSpec
    identity: Identity
    emotion: str
    voice: Voice
    caption: Caption
    text: str
    samples: np.ndarray
    phonemes: tuple[TimedPhoneme, ...]
    reference: Spoken
    reference_text: str
    motion: Motion

    def draw(self) -> Rendered:
        """The pictures, (num_frames, height, width, 3) uint8, with boxes and mouth opening."""
        mouth = mouth_track(self.phonemes, self.spec.num_frames, self.spec.fps)
        return render(
            self.identity, self.emotion, mouth, self.motion, height=self.spec.height, width=self.spec.width
        )

    def placed_phonemes(self) -> np.ndarray:
        """Phoneme ids on the audio tokens, (spec.audio_tokens,) int64."""
        return place_phonemes(self.phonemes, self.spec.audio_tokens)


def sample_clip(
    seed: int,
    index: int,
    *,
    lengths: Sequence[int] = LENGTHS,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> SpeakingClip:
    """Clip `index` of the data set `seed`; sentences that don't fit the longest length are drawn again."""
    rng = np.random.default_rng([seed, index])
    identity = sample_identity(rng)
    emotion = str(rng.choice(EMOTIONS))
    voice = sample_voice(rng, {"woman": "female", "man": "male"}[identity.attributes["gender"]])
    height, width = sizes[int(rng.integers(len(sizes)))]
    lead_s, tail_s = rng.uniform(0.05, 0.35), rng.uniform(0.1, 0.4)
    text, spoken = _fitting_speech(rng, voice, emotion, max(lengths) / FPS - lead_s - tail_s)
    needed_s = lead_s + _seconds(spoken) + tail_s
    num_frames = min(n for n in lengths if n / FPS >= needed_s)
    spec = ClipSpec(num_frames=num_frames, height=height, width=width, fps=FPS)
    lead = round(lead_s * MEL_HZ) * spec.hop  # whole mel frames, so that phoneme times stay exact
    lead_exact_s = lead / spec.sample_rate
    samples = np.zeros(spec.num_samples, np.float32)
    room = min(len(spoken.samples), spec.num_samples - lead)
    samples[lead : lead + room] = spoken.samples[:room]
    reference_text = sample_sentence(rng)
    return SpeakingClip(
        spec=spec,
        identity=identity,
        emotion=emotion,
        voice=voice,
        caption=describe(identity, emotion, rng),
        text=text,
        samples=samples,
        phonemes=tuple(
            replace(p, start_s=p.start_s + lead_exact_s, end_s=p.end_s + lead_exact_s)
            for p in spoken.phonemes
        ),
        reference=speak(reference_text, voice, emotion),
        reference_text=reference_text,
        motion=sample_motion(rng, num_frames, FPS, emotion),
    )


def as_seen(who: Identity) -> Identity:
    """The same person about as large and in the place as a close-up (media/closeup.py) shows faces."""
    x, y = (middle + FOUND * (at - middle) for at, middle in zip(who.position, PLACE, strict=True))
    return replace(who, scale=SCALE + FOUND * (who.scale - SCALE), position=(x, y))


@dataclass(frozen=True)
class Picture:
    """Somebody in one moment: `pixels` (side, side, 3) uint8, their words, and the face's box x0 y0 x1 y1."""

    pixels: np.ndarray
    caption: str
    face_box: tuple[float, float, float, float]


def sample_picture(seed: int, index: int, side: int = 128, variety: float = 1.0) -> Picture:
    """Picture `index` of the data set `seed`.

    Its people are others than those of the clips. With less `variety` (0..1) what no caption names differs
    less: a person as in `sample_identity`, nearer to one who looks ahead with a closed mouth.
    """
    rng = np.random.default_rng([seed, index, PICTURES])
    identity = sample_identity(rng, variety)
    emotion = str(rng.choice(EMOTIONS))
    mouth = variety * np.clip(rng.normal(0.2, 0.35, (1, len(MOUTH_PARAMETERS))), 0, 1)
    motion = sample_motion(rng, 1, FPS, emotion).stiller(variety)
    drawn = render(identity, emotion, mouth, motion, height=side, width=side)
    return Picture(
        drawn.frames[0], describe(identity, emotion, rng).text, tuple(drawn.face_boxes[0].tolist())
    )


def _fitting_speech(
    rng: np.random.Generator, voice: Voice, emotion: str, room_s: float
) -> tuple[str, Spoken]:
    while True:
        text = sample_sentence(rng)
        spoken = speak(text, voice, emotion)
        if _seconds(spoken) <= room_s:
            return text, spoken


def _seconds(spoken: Spoken) -> float:
    return len(spoken.samples) / 24_000
