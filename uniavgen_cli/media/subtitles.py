"""Subtitles in: SubRip (.srt) and WebVTT (.vtt) as lines with their times. Source: W3C WebVTT, section 4."""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from uniavgen_cli.errors import InputError
from uniavgen_cli.media.probe import shown

MOST_BYTES = 4 * 2**20
_TIME = r"(?:(\d{1,4}):)?([0-5]?\d):([0-5]?\d)[,.](\d{3})"
_TIMES = re.compile(rf"\s*{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")
_MARKUP = re.compile(r"<[^<>]*>|\{\\[^{}]*\}")
_AGAIN = "save it as SubRip or WebVTT in UTF-8"


@dataclass(frozen=True)
class Subtitle:
    """What is said from `start_s` to `end_s`, without markup; `line` is that of its times in the file."""

    line: int
    start_s: float
    end_s: float
    text: str


def read_subtitles(path: Path) -> tuple[Subtitle, ...]:
    """The subtitles of a file in order, without those in which no word stands.

    Raises InputError, naming the line, for a file that is broken in any place, and for times that go back.
    """
    found: list[Subtitle] = []
    until_s = 0.0
    for first, block in _blocks(_text(path)):
        subtitle = _parsed(first, block, path)
        if subtitle is None:
            continue
        if subtitle.end_s <= subtitle.start_s:
            raise _broken(path, subtitle.line, "it ends no later than it begins")
        if subtitle.start_s < until_s:
            raise _broken(path, subtitle.line, "it begins before the one above it ends")
        until_s = subtitle.end_s
        if any(character.isalnum() for character in subtitle.text):
            found.append(subtitle)
    if not found:
        raise InputError(f"{shown(path)} holds no subtitle with a word in it", "give a .srt or .vtt file")
    return tuple(found)


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise InputError(f"{shown(path)} is larger than {MOST_BYTES} bytes", "it is no subtitle file")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{shown(path)} is not UTF-8 text", _AGAIN) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{shown(path)} can't be read: {reason}", "check its name") from None


def _blocks(text: str) -> Iterator[tuple[int, list[str]]]:
    """Runs of lines with something in them, each with the number of its first."""
    block: list[str] = []
    lines = re.split(r"\r\n|\n|\r", text)
    for number, line in enumerate([*lines, ""], start=1):
        if line.strip():
            block.append(line.strip())
        elif block:
            yield number - len(block), block
            block = []


def _parsed(first: int, block: list[str], path: Path) -> Subtitle | None:
    """The subtitle of a block; None for WebVTT's blocks of other kinds."""
    if re.match(r"(WEBVTT|NOTE|STYLE|REGION)(\s|$)", block[0]) and not any("-->" in line for line in block):
        return None
    at = next((i for i, line in enumerate(block[:2]) if "-->" in line), None)
    if at is None:
        raise _broken(path, first, "no times stand above it")
    match = _TIMES.fullmatch(block[at])
    if match is None:
        raise _broken(
            path, first + at, f"{block[at][:60]!r} are no times such as 00:01:02,500 --> 00:01:04,000"
        )
    start_s, end_s = (
        3600 * int(hours or 0) + 60 * int(minutes) + int(seconds) + int(milliseconds) / 1000
        for hours, minutes, seconds, milliseconds in (match.groups()[:4], match.groups()[4:])
    )
    text = html.unescape(_MARKUP.sub("", " ".join(block[at + 1 :])))
    return Subtitle(first + at, start_s, end_s, " ".join(text.split()))


def _broken(path: Path, line: int, reason: str) -> InputError:
    return InputError(
        f"line {line} of {shown(path)} is no subtitle: {reason}", "mend it, or give another file"
    )
