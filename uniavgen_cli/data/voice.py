"""The speaking voice of the training world: sound, phonemes with their times, and the mouth they make.

`speak` returns sound and is for training and evaluation alone. At inference only `time_phonemes` is used: its
worker process has no samples to give. Both go through `espeak.py`, a process of its own.
"""

import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen_cli.data.sentences import sample_sentence
from uniavgen_cli.errors import InputError, UniAVGenError

__all__ = [
    "MANNERS", "PHONEMES", "PROSODY", "SAMPLE_RATE", "VOICES", "Prosody", "Spoken", "TimedPhoneme", "Voice",
    "check_sayable", "mouth_track", "place_phonemes", "retime", "sample_sentence", "sample_voice", "speak",
    "time_phonemes", "time_speech",
]  # fmt: skip

SAMPLE_RATE = 24_000
ESPEAK_RATE = 22_050

# The order is part of the trained weights: append, never reorder. 0 stands for no speech at all.
CONSONANTS = (
    "p", "b", "m", "f", "v", "θ", "ð", "t", "d", "n", "s", "z", "l", "ɾ", "ʃ", "ʒ", "tʃ", "dʒ", "ɹ", "j",
    "k", "ɡ", "ŋ", "w", "h", "ʔ",
)  # fmt: skip
VOWELS = (
    "iː", "i", "ɪ", "ᵻ", "eɪ", "ɛ", "æ", "a", "ə", "ɐ", "ʌ", "ɜː", "ɚ", "ɑː", "ɒ", "ɔː", "ɔ", "oʊ", "əʊ",
    "ʊ", "uː", "aɪ", "aʊ", "ɔɪ", "iə", "eə", "ʊə", "ɑːɹ", "ɔːɹ", "ɛɹ", "ɪɹ", "ʊɹ", "aɪɚ", "əl", "n̩",
)  # fmt: skip
PHONEMES = ("", "pause", *CONSONANTS, *VOWELS)
PHONEME_INDEX = {symbol: index for index, symbol in enumerate(PHONEMES)}

# Symbols of other accents, and the nearest of ours.
_NEAREST = {
    "r": "ɹ", "ʍ": "w", "x": "k", "ɬ": "l", "ɫ": "l", "c": "k", "g": "ɡ", "ɲ": "n", "ʲ": "j", "β": "v",
    "e": "ɛ", "eː": "eɪ", "aː": "ɑː", "a:": "ɑː", "ɑ": "ɑː", "o": "ɔ", "oː": "oʊ", "u": "ʊ", "ʉ": "ʊ",
    "ʉː": "uː", "ʌʉ": "aʊ", "ɜ": "ə", "əɹ": "ɚ", "ʌɹ": "ɚ", "ɜːɹ": "ɜː", "ʉɹ": "ʊɹ", "aɪə": "aɪɚ",
    "ɒɹ": "ɔːɹ", "ɔɹ": "ɔːɹ", "oːɹ": "ɔːɹ", "əm": "m", "ən": "n̩", "ɔə": "ɔːɹ", "ɛə": "eə", "y": "uː",
    "ɪː": "iː", "ɛː": "eə",
}  # fmt: skip


@dataclass(frozen=True)
class Voice:
    """One speaker: espeak-ng variant, accent, pitch 0..99 (50: the variant's own), rate in words a minute."""

    name: str
    gender: str  # "female" or "male"
    accent: str = "en-us"
    pitch: int = 50
    rate: int = 135

    @property
    def espeak_name(self) -> str:
        return f"{self.accent}+{self.name}"


# Chosen by measurement: different in long-term spectrum, fundamental (80-112 Hz and 170-240 Hz) or both.
VOICES = tuple(
    Voice(name, gender)
    for gender, names in (
        ("female", ("f1", "f2", "f3", "f5", "belinda", "linda", "Alicia", "Annie", "Andrea", "grandma")),
        ("male", ("m1", "m3", "m4", "m7", "m8", "Alex", "Michael", "ed", "john", "Lee")),
    )
    for name in names
)
ACCENTS = ("en-us", "en-gb-x-rp", "en", "en-gb-scotland", "en-us-nyc", "en-029")
_ACCENT_ODDS = (0.6, 0.12, 0.1, 0.06, 0.06, 0.06)


@dataclass(frozen=True)
class Prosody:
    """How an emotion speaks: pitch added, intonation range 0..99, factor on the rate, peak of the sound."""

    pitch: int
    range: int
    rate: float
    loudness: float


PROSODY = {
    "neutral": Prosody(0, 50, 1.0, 0.6),
    "happy": Prosody(16, 85, 1.06, 0.75),
    "sad": Prosody(-14, 20, 0.84, 0.38),
    "angry": Prosody(4, 70, 1.1, 0.9),
    "surprised": Prosody(24, 95, 1.02, 0.8),
    "afraid": Prosody(22, 30, 1.14, 0.45),
    "disgusted": Prosody(-8, 62, 0.9, 0.55),
}

MANNERS = tuple(PROSODY)  # of speaking, as a model counts them; the first is none in particular


@dataclass(frozen=True)
class TimedPhoneme:
    """A phoneme of `PHONEMES` from `start_s` to `end_s`; stress 0 none, 0.5 secondary, 1 primary."""

    symbol: str
    start_s: float
    end_s: float
    stress: float = 0.0


@dataclass(frozen=True)
class Spoken:
    """Mono float32 samples at 24 kHz and the phonemes they were made from."""

    samples: np.ndarray
    phonemes: tuple[TimedPhoneme, ...]


def sample_voice(rng: np.random.Generator, gender: str | None = None) -> Voice:
    """A random speaker of `gender` (any when None): variant, accent, pitch and rate."""
    choices = [voice for voice in VOICES if gender in (None, voice.gender)]
    if not choices:
        raise ValueError(f"gender {gender!r} is not female or male")
    return replace(
        choices[int(rng.integers(len(choices)))],
        accent=str(rng.choice(ACCENTS, p=_ACCENT_ODDS)),
        pitch=int(rng.integers(38, 63)),
        rate=int(rng.integers(118, 156)),
    )


def speak(text: str, voice: Voice, emotion: str = "neutral") -> Spoken:
    """`text` spoken: sound for training data and instruments, never for a result."""
    header, payload = _worker("speak").ask(_request(text, voice, emotion))
    samples = resample(np.frombuffer(payload, np.int16) / np.float32(32768))
    peak = float(np.abs(samples).max(initial=0.0))
    if peak > 0:
        samples = samples * (PROSODY[emotion].loudness / peak)
    return Spoken(samples.astype(np.float32), _timed(header))


def time_phonemes(
    text: str, voice: Voice = VOICES[0], emotion: str = "neutral", rate: float = 1.0
) -> tuple[TimedPhoneme, ...]:
    """The phonemes of `text` and when each is said; `rate` above 1 is faster than the voice's own.

    Raises InputError when the text has nothing that can be said in English.
    """
    return time_speech(text, voice, emotion, rate)[0]


def time_speech(
    text: str, voice: Voice = VOICES[0], emotion: str = "neutral", rate: float = 1.0
) -> tuple[tuple[TimedPhoneme, ...], tuple[tuple[int, float], ...]]:
    """As `time_phonemes`, and for each word its place in the text (single spaces) and when it begins.

    A number may be several words, the later ones somewhere inside it.
    """
    check_sayable(text)
    faster = replace(voice, rate=round(voice.rate * rate))
    header, _ = _worker("time").ask(_request(text, faster, emotion))
    timed = _timed(header)
    if all(phoneme.symbol == "pause" for phoneme in timed):
        raise InputError(f"nothing can be said of the speech text {text[:40]!r}", "write English words")
    return timed, tuple((place, start_ms / 1000) for place, start_ms in header["words"])


def check_sayable(text: str) -> None:
    """Raises InputError unless `text` holds letters or digits, all letters Latin."""
    foreign = next((c for c in text if c.isalpha() and ord(c) > 0x24F), None)
    if foreign:
        raise InputError(f"the speech text has {foreign!r}, which can't be said", "write it in English")
    if not any(c.isalnum() for c in text):
        raise InputError(f"the speech text {text[:40]!r} has no words", "write English words")


def retime(timed: tuple[TimedPhoneme, ...], start_s: float, end_s: float) -> tuple[TimedPhoneme, ...]:
    """The same phonemes moved and stretched to fill `start_s`..`end_s`."""
    first, last = timed[0].start_s, timed[-1].end_s
    scale = (end_s - start_s) / max(last - first, 1e-6)

    def moved(time_s: float) -> float:
        return start_s + (time_s - first) * scale

    return tuple(replace(p, start_s=moved(p.start_s), end_s=moved(p.end_s)) for p in timed)


def place_phonemes(timed: tuple[TimedPhoneme, ...], num_tokens: int, hop_s: float = 0.01) -> np.ndarray:
    """Index into PHONEMES of what is said at each token's centre, int64 (num_tokens,); 0 where nothing is."""
    placed = np.zeros(num_tokens, np.int64)
    for phoneme in timed:
        # a millionth of a token, so that times on a token's centre are not moved by rounding
        first, last = (int(np.ceil(t / hop_s - 0.5 - 1e-6)) for t in (phoneme.start_s, phoneme.end_s))
        placed[max(0, first) : max(0, last)] = PHONEME_INDEX[phoneme.symbol]
    return placed


def resample(samples: np.ndarray, source: int = ESPEAK_RATE, target: int = SAMPLE_RATE) -> np.ndarray:
    """Band-limited change of rate of a whole mono sound, by cutting or filling its spectrum."""
    step = source // np.gcd(source, target)  # an input of whole steps has a whole number of output samples
    padded = np.pad(samples, (0, -len(samples) % step + step))
    length = len(padded) * target // source
    spectrum = np.fft.rfft(padded)
    kept = np.zeros(length // 2 + 1, spectrum.dtype)
    shared = min(len(kept), len(spectrum))
    kept[:shared] = spectrum[:shared]
    sound = np.fft.irfft(kept, length) * (length / len(padded))
    return sound[: round(len(samples) * target / source)]


def _request(text: str, voice: Voice, emotion: str) -> dict[str, Any]:
    if emotion not in PROSODY:
        raise ValueError(f"emotion {emotion!r} is not one of {', '.join(PROSODY)}")
    prosody = PROSODY[emotion]
    return {
        "voice": voice.espeak_name,
        "rate": max(80, min(300, round(voice.rate * prosody.rate))),
        "pitch": max(0, min(99, voice.pitch + prosody.pitch)),
        "range": prosody.range,
        "text": " ".join(text.replace("\0", " ").split()),
    }


# espeak-ng reports a voiceless stop at its release and counts the silence before it to the sound before it:
# about 48 ms (median of 917 such stops at 110-170 words a minute).
_SILENT_CLOSURES = frozenset(("p", "t", "k", "tʃ"))
_CLOSURE_LEAD_S = 0.048


def _timed(header: dict[str, Any]) -> tuple[TimedPhoneme, ...]:
    events = header["phonemes"]
    ends = [start_ms for _, start_ms in events[1:]] + [header["end_ms"]]
    timed: list[TimedPhoneme] = []
    for (name, start_ms), end_ms in zip(events, ends, strict=True):
        if end_ms <= start_ms:
            continue
        symbol = nearest_symbol(name)
        stress = 1.0 if "ˈ" in name else 0.5 if "ˌ" in name else 0.0
        if timed and symbol == timed[-1].symbol == "pause":
            timed[-1] = replace(timed[-1], end_s=end_ms / 1000)
        else:
            start_s = start_ms / 1000
            if timed and symbol in _SILENT_CLOSURES and timed[-1].symbol != "pause":
                before = timed[-1]
                start_s = round(start_s - min(_CLOSURE_LEAD_S, 0.4 * (before.end_s - before.start_s)), 3)
                timed[-1] = replace(before, end_s=start_s)
            timed.append(TimedPhoneme(symbol, start_s, end_ms / 1000, stress))
    return tuple(timed)


@lru_cache(maxsize=512)
def nearest_symbol(name: str) -> str:
    """The member of PHONEMES for a name of espeak-ng's: stress dropped, unknown ones shortened till known."""
    bare = name.replace("ˈ", "").replace("ˌ", "")
    if not bare:
        return "pause"
    for length in range(len(bare), 0, -1):
        part = bare[:length]
        if part in PHONEME_INDEX:
            return part
        if part in _NEAREST:
            return _NEAREST[part]
    return "ə"


class _Worker:
    """One `espeak.py` process in a given mode, restarted when it has ended; safe to share among threads."""

    def __init__(self, mode: str) -> None:
        self._mode = mode
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            assert self._process.stdin is not None and self._process.stdout is not None
            try:
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = b""
            if not line:
                self._process.kill()
                raise UniAVGenError("the speech timing process (espeak-ng) ended", "see `uniavgen doctor`")
            header = json.loads(line)
            if "error" in header:
                raise UniAVGenError(header["error"], "see `uniavgen doctor`")
            payload = self._process.stdout.read(header["num_bytes"])
            if not hasattr(os, "fork"):  # such a process answers once and ends
                self._process.wait()
        return header, payload

    def _start(self) -> subprocess.Popen[bytes]:
        script = Path(__file__).with_name("espeak.py")
        # -P: the script's own folder must not shadow other modules
        command = [sys.executable, "-P", str(script), self._mode]
        pipe, null = subprocess.PIPE, subprocess.DEVNULL
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=null)


_workers: dict[tuple[int, str], _Worker] = {}


def _worker(mode: str) -> _Worker:
    # A forked child must not share its parent's pipes.
    return _workers.setdefault((os.getpid(), mode), _Worker(mode))


# Mouth shapes: (open, wide, round, teeth, tongue, tuck, press), 0 = at rest, 1 = the most this mouth does.
_REST = (0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0)
_SHAPES = {
    "pause": _REST,
    "p": (0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 1.0), "b": (0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.9),
    "m": (0.0, 0.15, 0.0, 0.0, 0.0, 0.0, 0.8),
    "f": (0.12, 0.25, 0.0, 0.6, 0.0, 1.0, 0.0), "v": (0.12, 0.25, 0.0, 0.6, 0.0, 0.9, 0.0),
    "θ": (0.22, 0.25, 0.0, 0.5, 1.0, 0.0, 0.0), "ð": (0.22, 0.25, 0.0, 0.5, 0.9, 0.0, 0.0),
    "t": (0.16, 0.3, 0.0, 0.6, 0.4, 0.0, 0.0), "d": (0.18, 0.3, 0.0, 0.55, 0.45, 0.0, 0.0),
    "n": (0.18, 0.25, 0.0, 0.45, 0.5, 0.0, 0.0), "ɾ": (0.22, 0.3, 0.0, 0.4, 0.5, 0.0, 0.0),
    "l": (0.28, 0.3, 0.0, 0.4, 0.8, 0.0, 0.0),
    "s": (0.1, 0.5, 0.0, 1.0, 0.0, 0.0, 0.0), "z": (0.12, 0.5, 0.0, 0.95, 0.0, 0.0, 0.0),
    "ʃ": (0.16, 0.0, 0.65, 0.9, 0.0, 0.0, 0.0), "ʒ": (0.16, 0.0, 0.65, 0.85, 0.0, 0.0, 0.0),
    "tʃ": (0.14, 0.0, 0.6, 0.9, 0.2, 0.0, 0.0), "dʒ": (0.16, 0.0, 0.6, 0.85, 0.2, 0.0, 0.0),
    "ɹ": (0.22, 0.0, 0.5, 0.2, 0.1, 0.0, 0.0), "j": (0.2, 0.6, 0.0, 0.4, 0.1, 0.0, 0.0),
    "k": (0.26, 0.25, 0.0, 0.2, 0.0, 0.0, 0.0), "ɡ": (0.26, 0.25, 0.0, 0.2, 0.0, 0.0, 0.0),
    "ŋ": (0.28, 0.25, 0.0, 0.2, 0.0, 0.0, 0.0), "ʔ": (0.2, 0.2, 0.0, 0.1, 0.0, 0.0, 0.0),
    "w": (0.1, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0), "h": (0.4, 0.25, 0.0, 0.1, 0.0, 0.0, 0.0),
    "iː": (0.28, 0.95, 0.0, 0.6, 0.1, 0.0, 0.0), "i": (0.28, 0.85, 0.0, 0.55, 0.1, 0.0, 0.0),
    "ɪ": (0.36, 0.65, 0.0, 0.4, 0.1, 0.0, 0.0), "ᵻ": (0.32, 0.5, 0.0, 0.4, 0.1, 0.0, 0.0),
    "ɛ": (0.6, 0.6, 0.0, 0.3, 0.1, 0.0, 0.0), "æ": (0.85, 0.65, 0.0, 0.3, 0.2, 0.0, 0.0),
    "a": (0.92, 0.45, 0.0, 0.25, 0.2, 0.0, 0.0), "ɑː": (1.0, 0.25, 0.0, 0.15, 0.2, 0.0, 0.0),
    "ʌ": (0.66, 0.3, 0.0, 0.2, 0.1, 0.0, 0.0), "ə": (0.4, 0.25, 0.0, 0.2, 0.1, 0.0, 0.0),
    "ɐ": (0.48, 0.3, 0.0, 0.2, 0.1, 0.0, 0.0), "ɜː": (0.45, 0.15, 0.35, 0.2, 0.1, 0.0, 0.0),
    "ɚ": (0.36, 0.1, 0.35, 0.2, 0.1, 0.0, 0.0), "ɒ": (0.82, 0.0, 0.4, 0.1, 0.1, 0.0, 0.0),
    "ɔː": (0.68, 0.0, 0.65, 0.05, 0.0, 0.0, 0.0), "ɔ": (0.68, 0.0, 0.6, 0.05, 0.0, 0.0, 0.0),
    "ʊ": (0.32, 0.0, 0.75, 0.1, 0.0, 0.0, 0.0), "uː": (0.18, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0),
    "e": (0.5, 0.75, 0.0, 0.35, 0.1, 0.0, 0.0), "o": (0.5, 0.0, 0.85, 0.0, 0.0, 0.0, 0.0),
    "n̩": (0.18, 0.25, 0.0, 0.45, 0.5, 0.0, 0.0),
}  # fmt: skip
# Sounds that move: where they begin and where they end.
_GLIDES = {
    "eɪ": ("e", "ɪ"), "aɪ": ("a", "ɪ"), "aʊ": ("a", "ʊ"), "ɔɪ": ("ɔː", "ɪ"), "oʊ": ("o", "uː"),
    "əʊ": ("ə", "uː"), "iə": ("iː", "ə"), "eə": ("e", "ə"), "ʊə": ("ʊ", "ə"), "ɑːɹ": ("ɑː", "ɹ"),
    "ɔːɹ": ("ɔː", "ɹ"), "ɛɹ": ("ɛ", "ɹ"), "ɪɹ": ("ɪ", "ɹ"), "ʊɹ": ("ʊ", "ɹ"), "aɪɚ": ("a", "ɚ"),
    "əl": ("ə", "l"),
}  # fmt: skip
_CLOSED = frozenset("pbm")
_TRACK_HZ = 200
_SMOOTHING_S = 0.03
_CLOSURE_S = 0.012


def mouth_track(timed: tuple[TimedPhoneme, ...], num_frames: int, fps: float) -> np.ndarray:
    """The mouth at each frame's centre, float32 (num_frames, 7) in 0..1, in the order of MOUTH_PARAMETERS.

    Targets stand at 200 Hz, smoothed over 30 ms; p, b and m are shut for 12 ms or more, however short.
    """
    length = int(np.ceil(num_frames / fps * _TRACK_HZ)) + 1
    times = np.arange(length) / _TRACK_HZ
    targets = np.tile(np.array(_REST), (length, 1))
    for phoneme in timed:
        begin, end = _GLIDES.get(phoneme.symbol, (phoneme.symbol, phoneme.symbol))
        inside = (times >= phoneme.start_s) & (times < phoneme.end_s)
        along = (times[inside] - phoneme.start_s) / (phoneme.end_s - phoneme.start_s)
        blend = np.clip((along - 0.3) / 0.5, 0, 1)[:, None]
        shape = (1 - blend) * np.array(_SHAPES[begin]) + blend * np.array(_SHAPES[end])
        shape[:, 0] *= 0.85 + 0.2 * phoneme.stress  # what is stressed is said with a wider mouth
        targets[inside] = shape
    width = round(_SMOOTHING_S * _TRACK_HZ) * 2 + 1
    kernel = np.hanning(width + 2)[1:-1]
    kernel /= kernel.sum()
    padded = np.pad(targets, ((width // 2, width // 2), (0, 0)), mode="edge")
    track = np.stack([np.convolve(column, kernel, mode="valid") for column in padded.T], axis=1)
    for phoneme in timed:
        if phoneme.symbol in _CLOSED:
            # shut from a little after the start; the release belongs to the next sound
            centre = phoneme.start_s + 0.4 * (phoneme.end_s - phoneme.start_s)
            half = max(_CLOSURE_S, 0.6 * (phoneme.end_s - phoneme.start_s)) / 2
            shut = (times >= centre - half - 1e-9) & (times <= centre + half + 1e-9)
            track[shut] = np.array(_SHAPES[phoneme.symbol])
    centres = (np.arange(num_frames) + 0.5) / fps
    sampled = track[np.clip(np.rint(centres * _TRACK_HZ).astype(int), 0, length - 1)]
    return np.clip(sampled, 0, 1).astype(np.float32)
