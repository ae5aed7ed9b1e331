"""Clips measured: a file in, every metric that can be read of it out, and why the others can't be."""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen_cli.data.voice import time_phonemes
from uniavgen_cli.engine.provenance import from_tags, hash_file
from uniavgen_cli.engine.request import split_prompt
from uniavgen_cli.errors import InputError
from uniavgen_cli.evaluation import (
    emotion,
    identity,
    loudness,
    motion,
    mouth,
    seam,
    speech,
    synchrony,
    syncnet,
    voice,
)  # fmt: skip
from uniavgen_cli.evaluation.instruments import HOW_TO_MAKE, Instruments
from uniavgen_cli.media.audio import read_audio, read_channels
from uniavgen_cli.media.face import detect_faces
from uniavgen_cli.media.image import is_image, read_image
from uniavgen_cli.media.probe import MediaInfo, probe
from uniavgen_cli.media.video import read_frames, read_metadata
from uniavgen_cli.shapes import fit_size

RATE = 24_000  # of the sound that our own instruments hear
MOST_S = 60.0  # of a clip that is measured
SIDE = 256  # pixels of the short side at which pictures are measured, at most
DRAWN_SCORE = 0.8  # of the drawn-face detector, which gives avatars 0.9 and photographs 0.7
MOST_LAG_S = 0.25


class LeftOut(Exception):
    """A metric that can't be measured of this clip; the reason is its text."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One figure of a clip; how it is measured stands in the docstring of `measured_by`."""

    key: str
    name: str
    unit: str
    better: str  # higher, lower, nearer 0, or neither
    measured_by: Callable[..., Any]


METRICS = (
    Metric(key="opening_sound", name="mouth with the sound's loudness", unit="r", better="higher",
           measured_by=synchrony.sound_envelope),
    Metric(key="opening_sound_lag", name="its best lag", unit="frames", better="nearer 0",
           measured_by=synchrony.best_lag),
    Metric(key="opening_heard", name="mouth with the phonemes heard", unit="r", better="higher",
           measured_by=synchrony.heard_opening),
    Metric(key="opening_heard_lag", name="its best lag", unit="frames", better="nearer 0",
           measured_by=synchrony.best_lag),
    Metric(key="lse_c", name="SyncNet confidence, LSE-C", unit="", better="higher",
           measured_by=syncnet.lip_sync_errors),
    Metric(key="lse_d", name="SyncNet distance, LSE-D", unit="", better="lower",
           measured_by=syncnet.lip_sync_errors),
    Metric(key="phoneme_errors", name="phoneme error rate", unit="share", better="lower",
           measured_by=speech.phoneme_error_rate),
    Metric(key="word_errors", name="word error rate, Whisper", unit="share", better="lower",
           measured_by=speech.word_error_rate),
    Metric(key="voice", name="voice like the given one", unit="cos", better="higher",
           measured_by=voice.voice_likeness),
    Metric(key="emotion_seen", name="emotion seen", unit="", better="neither",
           measured_by=emotion.seen_emotion),
    Metric(key="emotion_heard", name="emotion heard", unit="", better="neither",
           measured_by=emotion.heard_emotion),
    Metric(key="identity", name="person like the given one", unit="cos", better="higher",
           measured_by=identity.identity_likeness),
    Metric(key="identity_drift", name="person kept to the end", unit="cos", better="higher",
           measured_by=identity.identity_drift),
    Metric(key="seam_picture", name="seam, picture", unit="x", better="lower",
           measured_by=seam.picture_seam),
    Metric(key="seam_sound", name="seam, sound", unit="x", better="lower", measured_by=seam.sound_seam),
    Metric(key="motion", name="motion", unit="% a frame", better="neither", measured_by=motion.motion),
    Metric(key="flicker", name="flicker", unit="levels", better="lower", measured_by=motion.flicker),
    Metric(key="loudness", name="loudness", unit="LUFS", better="neither",
           measured_by=loudness.integrated_loudness),
    Metric(key="peak", name="peak", unit="dBFS", better="neither", measured_by=loudness.peak_dbfs),
    Metric(key="clipped", name="clipped", unit="share", better="lower", measured_by=loudness.clipped_share),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class References:
    """What a clip is held against: a person's picture or video, and a sound with the voice."""

    face: Path | None = None
    voice: Path | None = None


@dataclass(kw_only=True)
class ClipFile:
    """A clip as it is measured: its first minute, its record if it was made here, what it should say.

    Words come from the record, or from a .txt file of the same name beside the clip.
    """

    path: Path
    media: MediaInfo
    record: dict[str, Any] | None
    references: References = field(default_factory=References)

    @cached_property
    def frames(self) -> np.ndarray:
        """(n, h, w, 3) uint8 at the clip's own rate, short side 256 or less."""
        if self.media.video is None:
            raise LeftOut("it has no picture")
        video = self.media.video
        side = min(SIDE, video.height, video.width)
        height, width = fit_size(video.height, video.width, side, 2)
        return read_frames(self.path, video.fps, height, width, num_frames=round(MOST_S * video.fps))

    @property
    def fps(self) -> float:
        return self.media.video.fps if self.media.video is not None else 16.0

    @cached_property
    def samples(self) -> np.ndarray:
        """Mono, 24 kHz."""
        if self.media.audio is None:
            raise LeftOut("it has no sound")
        return read_audio(self.path, RATE, duration_s=MOST_S)

    @cached_property
    def drawn(self) -> bool:
        """Whether it shows a drawn person: nano made it up, or the picture it was made of shows one."""
        record = self.record or {}
        picture = self.given("face") or self.given("video")
        if picture is not None:
            looked_at = pictures_of(picture)
        elif record.get("base") == "nano" and record.get("task") == "generate":
            if "face" not in [*record.get("options", {}), *record.get("left_out", [])]:
                return True
            looked_at = self.frames
        else:
            looked_at = self.frames
        return shows_drawn(looked_at)

    def require_drawn(self) -> None:
        if not self.drawn:
            raise LeftOut("the probes know drawn people alone, and this is another's picture")

    def require_known_voice(self) -> None:
        """The probes of sound know the drawn world's voices: nano's own, whoever's picture it is given.

        Of a sound alone that is taken for granted.
        """
        record = self.record or {}
        ours = record.get("base") == "nano" and record.get("task") != "animate"
        if self.media.video is not None and not ours:
            self.require_drawn()

    @cached_property
    def text(self) -> str:
        """What all of its sound should say."""
        beside = self.path.with_suffix(".txt")
        if beside.is_file():
            return beside.read_text(encoding="utf-8", errors="replace").strip()
        if self.record is None:
            raise LeftOut(f"what it should say is not known; write it into {beside.name}")
        task, options = self.record.get("task"), self.record.get("options", {})
        if task not in ("generate", "dub"):
            raise LeftOut(f"only a part of it was made by {task}; write what it says into {beside.name}")
        said = options.get("speech") or split_prompt(options.get("prompt", ""))[1]
        if not said:
            raise LeftOut("it was made without words, or with --private")
        return str(said)

    def given(self, name: str) -> Path | None:
        """The file that the record names, where it still is and is still the same."""
        named = (self.record or {}).get("options", {}).get(name)
        if named is None:
            return None
        known = (self.record or {}).get("inputs", {}).get(name)
        for place in (Path(named), self.path.parent / named, self.path.parent / Path(named).name):
            if place.is_file() and hash_file(place) == known:
                return place
        return None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was found in one clip: values by the keys of METRICS, reasons for the others, curves to draw.

    `curves` are (n,) a frame of the picture: "opening" and what the sound wants, "sound" and "heard".
    """

    clip: ClipFile
    values: dict[str, Any]
    left_out: dict[str, str]
    curves: dict[str, np.ndarray]

    def as_json(self) -> dict[str, Any]:
        return {
            "path": str(self.clip.path),
            "seconds": round(self.clip.media.duration_s, 3),
            "task": (self.clip.record or {}).get("task"),
            "metrics": self.values,
            "left_out": self.left_out,
        }


def open_clip(path: Path, references: References | None = None) -> ClipFile:
    """A clip or a sound to be measured. Raises InputError when it is neither."""
    media = probe(path)
    if media.image is not None:
        raise InputError(f"{str(path)!r} is a picture", "eval measures clips and sounds")
    return ClipFile(
        path=path, media=media, record=from_tags(read_metadata(path)), references=references or References()
    )


def shows_drawn(frames: np.ndarray) -> bool:
    """Whether most of some frames (n, h, w, 3) show a drawn face."""
    looked_at = identity.some(frames, 5)
    scores = [max((face.score for face in detect_faces(f, "drawn")), default=0.0) for f in looked_at]
    return float(np.median(scores)) >= DRAWN_SCORE


def pictures_of(path: Path) -> np.ndarray:
    """A picture as one frame, or a clip's frames, (n, h, w, 3). Raises InputError."""
    return read_image(path)[None] if is_image(path) else open_clip(path).frames


def measure(clip: ClipFile, instruments: Instruments) -> Measured:
    """Every metric of a clip that can be read; the others with the reason why not."""
    values: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    curves: dict[str, np.ndarray] = {}
    for keys, group in _GROUPS.items():
        try:
            for key, value in group(clip, instruments, curves):
                values[key] = round(value, 4) if isinstance(value, float) else value
        except LeftOut as reason:
            left_out |= {key: str(reason) for key in keys if key not in values}
        except ValueError as error:  # too short for it
            left_out |= {key: str(error) for key in keys if key not in values}
        except InputError as error:  # damaged within, or a reference that is no longer what it was
            left_out |= {key: error.what for key in keys if key not in values}
    return Measured(clip=clip, values=values, left_out=left_out, curves=curves)


Found = Iterator[tuple[str, Any]]


def _needs(instrument: Any, what: str) -> Any:
    if instrument is None:
        raise LeftOut(f"{what} is not on disk; {HOW_TO_MAKE}")
    return instrument


def _synchrony(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    frames, samples = clip.frames, clip.samples
    wanted = synchrony.sound_envelope(samples, RATE, len(frames), clip.fps)
    curves["sound"] = wanted
    opening = read_opening(clip, instruments)
    curves["opening"] = opening
    yield "opening_sound", synchrony.correlation(opening, wanted)
    yield "opening_sound_lag", synchrony.best_lag(opening, wanted, _most_lag(clip.fps))[0]


def _heard(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    clip.require_drawn()
    recogniser = _needs(instruments.recogniser, "the phoneme recogniser")
    if "opening" not in curves:
        raise LeftOut("no mouth was read")
    wanted = synchrony.heard_opening(clip.samples, len(clip.frames), clip.fps, recogniser)
    curves["heard"] = wanted
    yield "opening_heard", synchrony.correlation(curves["opening"], wanted)
    yield "opening_heard_lag", synchrony.best_lag(curves["opening"], wanted, _most_lag(clip.fps))[0]


def read_opening(clip: ClipFile, instruments: Instruments) -> np.ndarray:
    """The opening of the mouth (n,): of a drawn face by the reader, of another by the contrast within it."""
    if clip.drawn and instruments.opening is not None:
        return instruments.opening.read(clip.frames)
    moves = mouth.mouth_contrast(clip.frames)
    if moves is None:
        raise LeftOut("no face was found")
    return moves


def _most_lag(fps: float) -> int:
    return max(1, round(MOST_LAG_S * fps))


def _syncnet(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    weights = instruments.syncnet
    if weights is None:
        raise LeftOut("SyncNet's weights are not on disk (syncnet/syncnet_v2.model among the weights)")
    height, width = clip.frames.shape[1:3]
    frames = read_frames(clip.path, syncnet.FPS, height, width, num_frames=round(MOST_S * syncnet.FPS))
    found = syncnet.lip_sync_errors(frames, read_audio(clip.path, syncnet.SAMPLE_RATE), weights)
    if found is None:
        raise LeftOut("no face was found")
    yield "lse_c", found[0]
    yield "lse_d", found[1]


def _phonemes(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    clip.require_known_voice()
    recogniser = _needs(instruments.recogniser, "the phoneme recogniser")
    try:
        timed = time_phonemes(clip.text)
    except InputError as error:
        raise LeftOut(str(error)) from None
    yield "phoneme_errors", speech.phoneme_error_rate(clip.samples, timed, recogniser)


def _words(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    if instruments.whisper is None:
        raise LeftOut("Whisper is not on disk (the folder whisper among the weights)")
    samples = read_audio(clip.path, speech.WHISPER_RATE, duration_s=MOST_S)
    yield "word_errors", speech.word_error_rate(samples, clip.text, instruments.whisper)


def _voice(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    clip.require_known_voice()
    reference = clip.references.voice or clip.given("voice")
    if reference is None:
        raise LeftOut("no voice is given to hold it against; --voice names one")
    probe_ = _needs(instruments.tone, "the voice probe")
    yield "voice", voice.voice_likeness(clip.samples, read_audio(reference, RATE), probe_)


def _emotion_seen(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    clip.require_drawn()
    expression = _needs(instruments.expression, "the expression probe")
    locator = _needs(instruments.opening, "the opening reader")
    yield "emotion_seen", emotion.seen_emotion(clip.frames, expression, locator)[0]


def _emotion_heard(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    clip.require_known_voice()
    if clip.media.video is None and clip.record is None:
        raise LeftOut("whose voice it is is not known, and the probe knows the drawn world's alone")
    yield "emotion_heard", emotion.heard_emotion(clip.samples, _needs(instruments.tone, "the voice probe"))[0]


def _identity(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    clip.require_drawn()
    reference = clip.references.face or clip.given("face")
    if reference is None:
        raise LeftOut("no person is given to hold it against; --face names a picture")
    probe_ = _needs(instruments.look, "the look probe")
    yield "identity", identity.identity_likeness(clip.frames, pictures_of(reference), probe_)


def _drift(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    clip.require_drawn()
    yield "identity_drift", identity.identity_drift(clip.frames, _needs(instruments.look, "the look probe"))


def _seam(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    if (clip.record or {}).get("task") != "continue":
        raise LeftOut("it is no continued clip")
    given = clip.given("video")
    if given is None:
        raise LeftOut("the clip that it continues is not where it was, or has changed")
    seconds = probe(given).duration_s
    frame, sample = round(seconds * clip.fps), round(seconds * RATE)
    yield "seam_picture", seam.picture_seam(clip.frames[:frame], clip.frames[frame:])
    yield "seam_sound", seam.sound_seam(clip.samples[:sample], clip.samples[sample:])


def _motion(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    yield "motion", motion.motion(clip.frames)
    yield "flicker", motion.flicker(clip.frames)


def _loudness(clip: ClipFile, instruments: Instruments, curves: dict[str, np.ndarray]) -> Found:
    audio = clip.media.audio
    if audio is None:
        raise LeftOut("it has no sound")
    rate = max(8000, audio.sample_rate)
    sound = read_channels(clip.path, rate, min(2, audio.channels), duration_s=MOST_S)
    yield "loudness", loudness.integrated_loudness(sound, rate)
    yield "peak", loudness.peak_dbfs(sound)
    yield "clipped", loudness.clipped_share(sound)


_GROUPS: Mapping[tuple[str, ...], Callable[[ClipFile, Instruments, dict[str, np.ndarray]], Found]] = {
    ("opening_sound", "opening_sound_lag"): _synchrony,
    ("opening_heard", "opening_heard_lag"): _heard,
    ("lse_c", "lse_d"): _syncnet,
    ("phoneme_errors",): _phonemes,
    ("word_errors",): _words,
    ("voice",): _voice,
    ("emotion_seen",): _emotion_seen,
    ("emotion_heard",): _emotion_heard,
    ("identity",): _identity,
    ("identity_drift",): _drift,
    ("seam_picture", "seam_sound"): _seam,
    ("motion", "flicker"): _motion,
    ("loudness", "peak", "clipped"): _loudness,
}


def how_measured(metric: Metric) -> str:
    """The docstring of what measures it, as one paragraph."""
    return re.sub(r"\s+", " ", metric.measured_by.__doc__ or "").strip()
