"""The speaking voice: sentences, phonemes with their times, mouths; and that its sound stays in training."""

import ast
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from uniavgen_cli.data import espeak, voice
from uniavgen_cli.data.avatar import EMOTIONS, MOUTH_PARAMETERS
from uniavgen_cli.data.sentences import vocabulary
from uniavgen_cli.data.voice import (
    PHONEMES,
    PROSODY,
    SAMPLE_RATE,
    VOICES,
    TimedPhoneme,
    Voice,
    mouth_track,
    place_phonemes,
    resample,
    retime,
    sample_sentence,
    sample_voice,
    speak,
    time_phonemes,
)
from uniavgen_cli.errors import InputError, UniAVGenError

PACKAGE = Path(voice.__file__).resolve().parents[1]
OPEN, PRESS = MOUTH_PARAMETERS.index("open"), MOUTH_PARAMETERS.index("press")
FEMALE = VOICES[0]
MALE = next(v for v in VOICES if v.gender == "male")


def loudness(samples: np.ndarray, start_s: float, end_s: float) -> float:
    piece = samples[round(start_s * SAMPLE_RATE) : round(end_s * SAMPLE_RATE)]
    return float(np.sqrt(np.mean(np.square(piece))))


def test_the_phoneme_order_is_the_one_weights_were_trained_with() -> None:
    digest = hashlib.sha256("|".join(PHONEMES).encode()).hexdigest()
    assert digest.startswith("15f12f837751d53c")
    assert PHONEMES[:2] == ("", "pause") and len(set(PHONEMES)) == len(PHONEMES) == 63


def test_the_same_words_sound_the_same_every_time() -> None:
    first = speak("Please wait for the next boat.", FEMALE, "happy")
    speak("Something else in between.", MALE, "angry")
    again = speak("Please wait for the next boat.", FEMALE, "happy")
    assert np.array_equal(first.samples, again.samples) and first.phonemes == again.phonemes
    assert first.samples.dtype == np.float32


def test_another_process_says_the_same_a_second_later(monkeypatch: pytest.MonkeyPatch) -> None:
    first = [speak("Zoe eats cherries.", speaker).samples for speaker in VOICES]
    monkeypatch.setattr(voice, "_workers", {})
    time.sleep(1.1)  # the library would seed its breath and flutter by the clock, in seconds
    for speaker, samples in zip(VOICES, first, strict=True):
        assert np.array_equal(speak("Zoe eats cherries.", speaker).samples, samples), speaker.name


def test_times_without_sound_are_the_times_of_the_sound() -> None:
    text, speaker = "Good morning, my little brother.", Voice("f3", "female", "en-gb-scotland", 44, 120)
    spoken = speak(text, speaker, "sad")
    assert time_phonemes(text, speaker, "sad") == spoken.phonemes
    assert spoken.phonemes[-1].end_s == pytest.approx(len(spoken.samples) / SAMPLE_RATE, abs=0.002)
    for before, after in zip(spoken.phonemes, spoken.phonemes[1:], strict=False):
        assert before.start_s < before.end_s <= after.start_s + 1e-9


def test_a_faster_rate_takes_less_time() -> None:
    slow, fast = (time_phonemes("We walked to the station.", rate=rate)[-1].end_s for rate in (1.0, 1.3))
    assert 0.65 < fast / slow < 0.9


def test_a_timing_process_answers_without_a_sample() -> None:
    request = {"voice": "en-us", "rate": 140, "pitch": 50, "range": 50, "text": "Hello there."}
    for mode, has_sound in (("time", False), ("speak", True)):
        done = subprocess.run(
            [sys.executable, "-P", espeak.__file__, mode],
            input=json.dumps(request).encode() + b"\n",
            capture_output=True,
            check=True,
        )
        line, _, payload = done.stdout.partition(b"\n")
        header = json.loads(line)
        assert [name.strip("ˈˌ") for name, _ in header["phonemes"]][:4] == ["h", "ə", "l", "oʊ"]
        assert (header["num_bytes"] > 0) == has_sound and len(payload) == header["num_bytes"]


def test_asking_for_times_starts_no_speaking_process() -> None:
    code = (
        "from uniavgen_cli.data import voice; voice.time_phonemes('Hello.');"
        "print([mode for _, mode in voice._workers])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['time']"


def test_synthesised_sound_cannot_reach_an_output() -> None:
    """Outside data, training and evaluation nothing takes hold of `speak` or of what calls it.

    `data preview` alone may: it shows the training data, and says so.
    """
    training_only = {"espeak", "dataset", "cache", "sentences"}
    checked = 0
    for path in PACKAGE.rglob("*.py"):
        relative = path.relative_to(PACKAGE)
        if (
            relative.parts[0] in ("data", "training", "evaluation")
            or relative.as_posix() == "commands/data.py"
        ):
            continue
        checked += 1
        for node in ast.walk(ast.parse(path.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = {alias.name for alias in node.names}
                if module.startswith("uniavgen_cli.data"):
                    assert module.rpartition(".")[2] not in training_only, f"{path}:{node.lineno}"
                    assert not names & training_only, f"{path}:{node.lineno}"
                if module == "uniavgen_cli":
                    assert "data" not in names, f"{path}:{node.lineno}"
            elif isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
                forbidden_modules = ("uniavgen_cli.data", "espeakng_loader")
                assert not any(name.startswith(forbidden_modules) for name in names), f"{path}:{node.lineno}"
            elif isinstance(node, ast.Attribute):
                names = {node.attr}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names = {node.value}
            forbidden = {"speak", "Spoken", "_worker", "_Worker"}
            assert not names & forbidden, f"{path}:{getattr(node, 'lineno', 0)}: {names & forbidden}"
    assert checked > 10


@pytest.mark.parametrize("text", ["", "...", "你好", "Привет", "hello 世界"])
def test_text_that_cannot_be_said_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        time_phonemes(text)


def test_a_voice_that_is_not_there_is_an_error_and_the_next_request_works() -> None:
    with pytest.raises(UniAVGenError, match="no voice"):
        speak("Hello.", Voice("f1", "female", accent="en-nowhere"))
    assert len(speak("Hello.", FEMALE).samples) > 0
    with pytest.raises(ValueError, match="emotion"):
        speak("Hello.", FEMALE, "sleepy")


def test_odd_text_is_said_or_refused_but_never_hangs() -> None:
    for text in (
        "50% of 3 cats\n\ncost £4.20!",
        '<speak>"quoted" & [[odd]]</speak>',
        "Café naïve, Zoë?",
        "a" * 300,
    ):
        assert time_phonemes(text)[-1].end_s > 0.2


def test_every_emotion_has_its_prosody() -> None:
    assert set(PROSODY) == set(EMOTIONS)
    spoken = {emotion: speak("I think we should go home now.", FEMALE, emotion) for emotion in EMOTIONS}
    for emotion, sound in spoken.items():
        assert np.abs(sound.samples).max() == pytest.approx(PROSODY[emotion].loudness, rel=1e-3)
        assert 0.3 <= PROSODY[emotion].loudness <= 0.9
    assert len(spoken["sad"].samples) > 1.15 * len(spoken["angry"].samples)


def test_voices_differ_and_women_speak_higher() -> None:
    from uniavgen_cli.training.vocoder_stage import track_pitch

    genders: dict[str, list[float]] = {"female": [], "male": []}
    envelopes = []
    for speaker in VOICES:
        samples = speak("The rainbow is a long line of light.", speaker).samples
        pitch = track_pitch(samples)
        genders[speaker.gender].append(float(np.median(pitch[pitch > 0])))
        power = np.abs(np.fft.rfft(samples)) ** 2
        edges = (np.geomspace(80, 9000, 17) * len(samples) / SAMPLE_RATE).astype(int)
        bands = np.log(np.add.reduceat(power, edges)[:-1])
        envelopes.append(bands - bands.mean())
    assert len(VOICES) >= 8
    assert min(genders["female"]) > 160 > 140 > max(genders["male"])
    pitches = genders["female"] + genders["male"]
    for i in range(len(VOICES)):
        for j in range(i):
            apart = (
                np.abs(envelopes[i] - envelopes[j]).mean() > 0.15 or abs(pitches[i] / pitches[j] - 1) > 0.04
            )
            assert apart, f"{VOICES[i].name} and {VOICES[j].name} sound alike"


def test_sampled_voices_keep_their_gender_and_vary() -> None:
    rng = np.random.default_rng(3)
    women = {sample_voice(rng, "female") for _ in range(60)}
    assert {v.gender for v in women} == {"female"}
    assert len({v.name for v in women}) >= 8 and len({v.accent for v in women}) >= 4
    with pytest.raises(ValueError, match="gender"):
        sample_voice(rng, "robot")


def test_sentences_are_many_short_and_cover_every_common_phoneme() -> None:
    assert len(vocabulary()) >= 800
    rng = np.random.default_rng(0)
    sentences = [sample_sentence(rng) for _ in range(250)]
    assert len(set(sentences)) > 230
    assert all(1 < len(s.split()) <= 15 and s[0].isupper() and s[-1] in ".!?" for s in sentences)
    assert sample_sentence(np.random.default_rng(5)) == sample_sentence(np.random.default_rng(5))
    heard = {p.symbol for s in sentences for p in time_phonemes(s, sample_voice(rng))}
    assert len(heard) >= 55 and heard <= set(PHONEMES)


def test_stops_are_silent_while_they_are_closed() -> None:
    spoken = speak("My map, a cat, a paper cup.", Voice("m3", "male"))
    stops = [
        (before, stop)
        for before, stop in zip(spoken.phonemes, spoken.phonemes[1:], strict=False)
        if stop.symbol in "ptk" and before.symbol not in ("pause", "p", "t", "k")
    ]
    assert len(stops) >= 5
    for before, stop in stops:
        closed = loudness(spoken.samples, stop.start_s + 0.012, stop.start_s + 0.03)
        assert closed < 0.1 * loudness(spoken.samples, before.start_s, before.end_s), stop


def test_phonemes_are_placed_at_the_centres_of_tokens() -> None:
    timed = (
        TimedPhoneme("m", 0.014, 0.035),
        TimedPhoneme("pause", 0.035, 0.05),
        TimedPhoneme("aɪ", 0.05, 9.0),
    )
    m, pause, ai = (PHONEMES.index(symbol) for symbol in ("m", "pause", "aɪ"))
    assert place_phonemes(timed, 8).tolist() == [0, m, m, pause, pause, ai, ai, ai]
    assert place_phonemes((), 3).tolist() == [0, 0, 0]


def test_retiming_moves_and_stretches() -> None:
    timed = (TimedPhoneme("m", 0.1, 0.2), TimedPhoneme("aɪ", 0.2, 0.5, 1.0))
    first, second = retime(timed, 1.0, 1.8)
    assert (first.start_s, first.end_s, second.end_s) == pytest.approx((1.0, 1.2, 1.8))
    assert second.stress == 1.0


def test_every_phoneme_has_a_mouth_and_lips_shut_for_p_b_m() -> None:
    for symbol in PHONEMES[1:]:
        assert mouth_track((TimedPhoneme(symbol, 0.0, 0.3),), 4, 16).shape == (4, len(MOUTH_PARAMETERS))
    timed = (
        TimedPhoneme("ɑː", 0.0, 0.2, 1.0),
        TimedPhoneme("b", 0.2, 0.23),
        TimedPhoneme("ɑː", 0.23, 0.5, 1.0),
    )
    track = mouth_track(timed, 100, 200)  # a very short closure, seen at every step of the track
    shut = track[:, OPEN] == 0
    assert shut[38:48].sum() >= 3 and track[20, OPEN] > 0.9 and track[70, OPEN] > 0.9
    assert track[42, PRESS] > 0.8 and track.dtype == np.float32 and track.min() >= 0 and track.max() <= 1


def test_vowels_open_by_height_and_stress() -> None:
    def opening(symbol: str, stress: float = 0.0) -> float:
        return float(mouth_track((TimedPhoneme(symbol, 0.0, 0.5, stress),), 8, 16)[4, OPEN])

    assert opening("ɑː") > opening("ɛ") > opening("iː") > opening("s") > opening("m") == 0
    assert opening("ɛ", 1.0) > 1.1 * opening("ɛ")
    assert mouth_track((), 3, 16)[:, OPEN].tolist() == [0, 0, 0]


def test_resampling_keeps_a_tone() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(22_050) / 22_050)
    moved = resample(tone)
    expected = np.sin(2 * np.pi * 1000 * np.arange(24_000) / 24_000)
    assert len(moved) == 24_000
    assert np.abs(moved - expected)[500:-500].max() < 0.01
