"""What is said and when: a text timed as a whole, pressed into a time, cut for a window. No torch."""

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from uniavgen_cli.codecs.speech_tokens import num_syllables
from uniavgen_cli.data.voice import TimedPhoneme, retime, time_speech
from uniavgen_cli.errors import InputError

MAX_SPEED_UP = 1.3  # speech faster than this no longer sounds like speech
SYLLABLE_S, LETTER_S = 0.21, 0.065  # of Mandarin at an easy pace, and of Latin letters within it
PAUSE_S = 0.12  # silence between words that a border between windows may fall into


@dataclass(frozen=True)
class Word:
    """A word (in Chinese a syllable): where it begins in its text, and when it is said."""

    place: int
    start_s: float
    end_s: float

    @property
    def middle_s(self) -> float:
        return (self.start_s + self.end_s) / 2


@dataclass(frozen=True, kw_only=True)
class Speech:
    """A text with the time of each word and phoneme; none of the latter where they are not known."""

    text: str = ""
    words: tuple[Word, ...] = ()
    phonemes: tuple[TimedPhoneme, ...] = ()

    @property
    def start_s(self) -> float:
        """When the first thing is said."""
        first = self.phonemes or self.words
        return first[0].start_s if first else 0.0

    @property
    def end_s(self) -> float:
        last = self.phonemes or self.words
        return last[-1].end_s if last else 0.0

    def retimed(self, start_s: float, end_s: float) -> "Speech":
        """The same moved and stretched to fill `start_s`..`end_s`."""
        if not self.words:
            return self
        first = self.start_s
        scale = (end_s - start_s) / max(self.end_s - first, 1e-6)
        words = tuple(
            Word(word.place, start_s + (word.start_s - first) * scale, start_s + (word.end_s - first) * scale)
            for word in self.words
        )
        phonemes = retime(self.phonemes, start_s, end_s) if self.phonemes else ()
        return replace(self, words=words, phonemes=phonemes)

    def within(self, start_s: float, end_s: float) -> "Speech":
        """What is said between two times, on a clock that begins at the first of them.

        A word belongs to it when its middle does; a phoneme also when only a part of it does.
        """
        inside = [i for i, word in enumerate(self.words) if start_s <= word.middle_s < end_s]
        text = ""
        if inside:
            after = inside[-1] + 1
            stop = self.words[after].place if after < len(self.words) else len(self.text)
            text = self.text[self.words[inside[0]].place : stop].strip()
        begin = self.words[inside[0]].place if inside else 0
        return Speech(
            text=text,
            words=tuple(
                Word(word.place - begin, word.start_s - start_s, word.end_s - start_s)
                for word in (self.words[i] for i in inside)
            ),
            phonemes=tuple(
                replace(p, start_s=p.start_s - start_s, end_s=p.end_s - start_s)
                for p in self.phonemes
                if p.end_s > start_s and p.start_s < end_s
            ),
        )

    def pauses(self) -> list[tuple[float, float]]:
        """When nothing is said between what is said, (from, to) in seconds."""
        said: Sequence[Word | TimedPhoneme] = [p for p in self.phonemes if p.symbol != "pause"]
        said = said or self.words
        return [
            (one.end_s, following.start_s)
            for one, following in zip(said[:-1], said[1:], strict=True)
            if following.start_s - one.end_s >= PAUSE_S
        ]


def joined(parts: Sequence[Speech]) -> Speech:
    """Texts that are said one after another, at their own times, as one."""
    text = ""
    words: list[Word] = []
    phonemes: list[TimedPhoneme] = []
    for part in parts:
        text += " " if text else ""
        words += [replace(word, place=word.place + len(text)) for word in part.words]
        phonemes += part.phonemes
        text += part.text
    return Speech(text=text, words=tuple(words), phonemes=tuple(phonemes))


def time_text(text: str, language: str = "en", emotion: str = "neutral") -> Speech:
    """A text at an emotion's easy pace from 0 on. Raises InputError when nothing in it can be said."""
    text = " ".join(text.split())
    if not text:
        return Speech()
    if language != "en":
        return Speech(text=text, words=_chinese_words(text))
    phonemes, events = time_speech(text, emotion=emotion)
    places = [match.start() for match in re.finditer(r"\S+", text)]
    starts: dict[int, float] = {}  # of words that have a time of their own; the others are said with them
    for place, start_s in events:
        starts.setdefault(places[max(0, bisect.bisect_right(places, place) - 1)], start_s)
    times = [*sorted(starts.values()), phonemes[-1].end_s]
    words = tuple(
        Word(place if i else 0, times[i], max(times[i], times[i + 1]))
        for i, place in enumerate(sorted(starts))
    )
    return Speech(text=text, words=words, phonemes=phonemes)


def _chinese_words(text: str) -> tuple[Word, ...]:
    """Ideographs, each a syllable, and runs of Latin letters, each with its expected time."""
    words: list[Word] = []
    now_s = 0.0
    for match in re.finditer(r"[^\W_]", text):
        place, character = match.start(), match.group()
        syllable = num_syllables(character) == 1
        length_s = SYLLABLE_S if syllable else LETTER_S
        if not syllable and words and words[-1].end_s == now_s and _one_run(text, words[-1].place, place):
            words[-1] = replace(words[-1], end_s=now_s + length_s)
        else:
            words.append(Word(place, now_s, now_s + length_s))
        now_s += length_s
    return tuple(words)


def _one_run(text: str, first: int, last: int) -> bool:
    run = text[first : last + 1]
    return run.isalnum() and not num_syllables(run)


def fitted(speech: Speech, start_s: float, room_s: float, what: str = "the speech") -> Speech:
    """The speech from `start_s` on, faster where `room_s` asks for it; InputError beyond 1.3 times."""
    spoken_s = speech.end_s
    if not spoken_s:
        return speech
    speed = max(1.0, spoken_s / max(room_s, 1e-3))
    if speed > MAX_SPEED_UP:
        raise InputError(
            f"{what} takes {spoken_s:.2f} s and there is room for {max(room_s, 0):.2f} s, which would be "
            f"{speed:.2f} times its pace (at most {MAX_SPEED_UP})",
            "shorten the speech, or give more time",
        )
    return speech.retimed(start_s + speech.start_s / speed, start_s + spoken_s / speed)
