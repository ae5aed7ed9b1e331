"""Subtitle files: what is read, what is refused with the line that is wrong, and how lines are spoken."""

from pathlib import Path

import numpy as np
import pytest

from uniavgen_cli.config import load_preset
from uniavgen_cli.engine.request import Request, check
from uniavgen_cli.errors import InputError, UsageError
from uniavgen_cli.media.subtitles import read_subtitles
from uniavgen_cli.media.video import write_clip

SRT = """\
1
00:00:00,500 --> 00:00:02,000
<i>Good</i> morning,
everyone.

2
00:00:02,000 --> 00:00:03,000
♪ ♪

3
00:00:03,250 --> 00:00:05,000 X1:10
{\\an8}See you &amp; me.
"""
VTT = """\
WEBVTT - talk

NOTE nobody reads this
and this neither

intro
00:00.500 --> 00:02.000 align:start
<v Anna>Good morning, everyone.

STYLE
::cue { color: red }

01:00:03.250 --> 01:00:05.000
See you & me.
"""


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def test_subrip_is_read(tmp_path: Path) -> None:
    for text in (SRT, "\ufeff" + SRT, SRT.replace("\n", "\r\n"), SRT.rstrip()):
        first, last = read_subtitles(write(tmp_path / "a.srt", text))
        assert (first.line, first.start_s, first.end_s) == (2, 0.5, 2.0)
        assert first.text == "Good morning, everyone." and last.text == "See you & me."
        assert (last.line, last.start_s, last.end_s) == (11, 3.25, 5.0)


def test_webvtt_is_read(tmp_path: Path) -> None:
    first, last = read_subtitles(write(tmp_path / "a.vtt", VTT))
    assert (first.start_s, first.end_s, first.text) == (0.5, 2.0, "Good morning, everyone.")
    assert (last.start_s, last.text) == (3603.25, "See you & me.")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no subtitle"),
        ("1\n00:00:01,000 --> 00:00:02,000\n...\n", "holds no subtitle"),
        ("just a text\n", "line 1 of .* no times stand above it"),
        (SRT + "\nand more\n", "line 14 of .* no times stand above it"),
        (SRT.replace("00:00:03,250", "00:00:03:250"), "line 11 of .* are no times such as"),
        (SRT.replace("00:00:03,250", "00:00:83,250"), "line 11 of .* are no times such as"),
        (SRT.replace("00:00:03,250", "00:00:05,000"), "line 11 of .* ends no later than it begins"),
        (SRT.replace("00:00:03,250", "00:00:02,900"), "line 11 of .* before the one above it ends"),
    ],
)
def test_a_broken_file_is_one_line_that_names_the_place(text: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=problem):
        read_subtitles(write(tmp_path / "a.srt", text))


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_bytes(b"\xff\xfe1\x00")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_subtitles(tmp_path / "a.srt")
    with pytest.raises(InputError, match="No such file"):
        read_subtitles(tmp_path / "b.srt")
    (tmp_path / "c.srt").write_bytes(b"x" * (4 * 2**20 + 1))
    with pytest.raises(InputError, match="is larger than"):
        read_subtitles(tmp_path / "c.srt")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 s without sound."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    return write_clip(path, np.zeros((96, 64, 64, 3), np.uint8), np.zeros(9, np.float32), 8, 24_000)


def test_each_line_is_spoken_in_its_time(video: Path, tmp_path: Path) -> None:
    lines = [(0.5, 2.5, "Good morning."), (4.0, 5.2, "Welcome to the house."), (9.0, 11.5, "Good night.")]
    text = "".join(f"\n00:00:{a:06.3f} --> 00:00:{b:06.3f}\n{words}\n" for a, b, words in lines)
    path = write(tmp_path / "a.srt", text.replace(".", ",", 0))
    plan = check(Request(task="dub", video=video, subtitles=path), load_preset("nano"))
    assert plan.speech == "Good morning. Welcome to the house. Good night." and len(plan.windows) == 5
    for start_s, end_s, words in lines:
        said = plan.spoken.within(start_s, end_s)
        assert said.text == words
        assert -0.001 <= said.phonemes[0].start_s < 0.1 and said.phonemes[-1].end_s <= end_s - start_s + 0.001
    assert not plan.spoken.within(2.6, 3.9).phonemes and not plan.spoken.within(5.3, 8.9).phonemes
    assert all(
        any(a <= window.end / 16 <= b for a, b in ((1.0, 4.0), (5.2, 9.0), (9.5, 12.0)))
        for window in plan.windows[:-1]
    )


@pytest.mark.parametrize(
    ("fields", "kind", "problem"),
    [
        ({"speech": "Hello."}, UsageError, "--speech and --subtitles both"),
        ({"task": "continue"}, UsageError, "continue takes no subtitles"),
        (
            {"text": "00:01.000 --> 00:01.400\nFar too much for so little time."},
            InputError,
            "line 1 of .* 1.3",
        ),
        ({"text": "00:01.000 --> 00:14.000\nHello."}, InputError, "ends at 14.00 s and the video at 12.00 s"),
        ({"text": "00:01.000 --> 00:04.000\nПривет."}, InputError, "can't be said"),
    ],
)
def test_what_can_not_be_spoken_is_refused(
    fields: dict, kind: type[Exception], problem: str, video: Path, tmp_path: Path
) -> None:
    text = fields.get("text", "00:01.000 --> 00:04.000\nHello there.")
    options = {"task": "dub", **{name: value for name, value in fields.items() if name != "text"}}
    with pytest.raises(kind, match=problem):
        check(Request(video=video, subtitles=write(tmp_path / "a.vtt", text), **options), load_preset("nano"))
