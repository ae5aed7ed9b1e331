"""Transcripts of people's videos: beside them or in a CSV, and shared out over the time that is spoken."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from uniavgen_cli.data.voice import time_phonemes
from uniavgen_cli.errors import InputError

COLUMNS = ("file", "text", "start_s", "end_s", "caption", "emotion")
_WORD = re.compile(r"[\u3100-\u9fff]|[^\s\u3100-\u9fff]+")  # an ideograph is a word of its own
_LETTER_S = 0.07  # what a letter takes to say, where its phonemes are not known
_IDEOGRAPH_S = 0.22

Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Line:
    """What is said in a video, or from `start_s` to `end_s` of it; who is seen; how it is said."""

    text: str
    start_s: float | None = None
    end_s: float | None = None
    caption: str = ""
    emotion: str = ""


@dataclass(frozen=True)
class Word:
    """One word and when it is said, in seconds."""

    text: str
    start_s: float
    end_s: float

    @property
    def middle_s(self) -> float:
        return (self.start_s + self.end_s) / 2


def read_beside(video: Path) -> list[Line]:
    """The text file of the video's own name, as one line of all of it; [] without one. Raises InputError."""
    path = video.with_suffix(".txt")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the transcript {path.name} can't be read: {reason}") from None
    return [Line(text=" ".join(text.split()))] if text else []


def read_table(path: Path) -> dict[str, list[Line]]:
    """The lines of each file that a CSV names, by the name as it stands there.

    Its first row names the columns: file and text; start_s and end_s where a line is a part of the video,
    caption and emotion as wanted. Comma, semicolon or tab between them. Raises InputError.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the transcripts {path} can't be read: {reason}", "give a CSV file") from None
    head = content.partition("\n")[0]
    separator = max(",;\t", key=head.count)
    rows = csv.DictReader(io.StringIO(content, newline=""), delimiter=separator)
    columns = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = columns
    missing = [name for name in ("file", "text") if name not in columns]
    unknown = [name for name in columns if name not in COLUMNS]
    if missing or unknown:
        wrong = f"has no column {missing[0]!r}" if missing else f"has a column {unknown[0]!r}"
        names = ", ".join(COLUMNS)
        raise InputError(f"the transcripts {path}: its first row {wrong}", f"it may name {names}")
    lines: dict[str, list[Line]] = {}
    for row in rows:
        where = f"{path}, line {rows.line_num}"
        values = {name: (row.get(name) or "").strip() for name in COLUMNS}
        if not values["file"]:
            raise InputError(f"{where}: no file is named")
        times = [_seconds(values[name], name, where) for name in ("start_s", "end_s")]
        if None not in times and not times[0] < times[1]:  # type: ignore[operator]
            raise InputError(f"{where}: start_s {times[0]:g} is not before end_s {times[1]:g}")
        lines.setdefault(values["file"], []).append(
            Line(
                text=" ".join(values["text"].split()),
                start_s=times[0],
                end_s=times[1],
                caption=values["caption"],
                emotion=values["emotion"],
            )
        )
    return lines


def _seconds(text: str, name: str, where: str) -> float | None:
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise InputError(f"{where}: {name} {text!r} is no number of seconds")
    return seconds


def share_out(lines: Sequence[Line], spoken: Sequence[Span]) -> list[Word]:
    """Every word of the lines with its time, shared out over the spans in which somebody speaks.

    A word takes its part of the spoken time by how long it takes to say; silences between spans are left out.
    A line without times has all of the spans. This is no recognition: in a long video without times the
    words may drift from where they are said.
    """
    words: list[Word] = []
    for line in lines:
        start, end = line.start_s or 0.0, line.end_s if line.end_s is not None else float("inf")
        spans = [(max(a, start), min(b, end)) for a, b in spoken if min(b, end) > max(a, start)]
        texts = _WORD.findall(line.text)
        lengths = [say_s(text) for text in texts]
        total, room = sum(lengths), sum(b - a for a, b in spans)
        if not total or not room:
            continue
        at = _on_clock(spans)
        done = 0.0
        for text, length in zip(texts, lengths, strict=True):
            if length:
                # a hair inside, so that a word doesn't end in the span after the one it is said in
                first, last = at(done / total * room + 1e-6), at((done + length) / total * room - 1e-6)
                words.append(Word(text, first, last))
                done += length
            elif words:  # a dash or a sign stays with the word before it
                before = words[-1]
                space = "" if _ideograph(before.text[-1]) else " "
                words[-1] = Word(f"{before.text}{space}{text}", before.start_s, before.end_s)
    return sorted(words, key=lambda word: word.start_s)


def _on_clock(spans: Sequence[Span]) -> Callable[[float], float]:
    """Seconds of speech to seconds of the video."""

    def at(spoken_s: float) -> float:
        for start, end in spans:
            if spoken_s <= end - start:
                return start + max(0.0, spoken_s)
            spoken_s -= end - start
        return spans[-1][1]

    return at


def joined_text(words: Sequence[Word]) -> str:
    """The words as a text; ideographs stand without spaces."""
    text = ""
    for word in words:
        space = text and not (_ideograph(text[-1]) or _ideograph(word.text[0]))
        text += f" {word.text}" if space else word.text
    return text


@lru_cache(maxsize=20_000)
def say_s(word: str) -> float:
    """About how long a word takes to say, in seconds; 0 for what is not said."""
    letters = sum(c.isalnum() for c in word)
    if _ideograph(word[0]):
        return _IDEOGRAPH_S
    if not letters:
        return 0.0
    try:
        timed = time_phonemes(word)
    except InputError:  # of another script
        return letters * _LETTER_S
    return sum(p.end_s - p.start_s for p in timed if p.symbol != "pause")


def _ideograph(character: str) -> bool:
    return "\u3100" <= character <= "\u9fff"
