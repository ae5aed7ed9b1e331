"""Planning of long clips: windows and what is said in each, without a model."""

import pytest

from uniavgen_cli.engine.speech import MAX_SPEED_UP, fitted, joined, time_text
from uniavgen_cli.engine.windows import Window, kept_frames, share_out
from uniavgen_cli.errors import InputError
from uniavgen_cli.shapes import tokens_of_frames

NANO = {"fps": 16, "mel_hz": 100, "least": 17, "most": 81}
TEXT = (
    "Good morning, and welcome to the house by the river. We open at nine, and we close at five. "
    "Please leave your coats by the door; the stairs are to your left. Dinner is served at seven."
)


def added(windows: tuple[Window, ...]) -> list[int]:
    return [window.end - window.first_new for window in windows]


def test_a_clip_that_fits_is_one_window() -> None:
    assert share_out(21, **NANO) == (Window(start=0, kept=0, end=21, num_frames=21),)
    assert share_out(10, **NANO) == (Window(start=0, kept=0, end=10, num_frames=17),)
    assert share_out(60, **NANO, context=37) == (Window(start=0, kept=37, end=60, num_frames=61),)


def test_windows_keep_37_frames_and_231_tokens_and_move_both_streams_alike() -> None:
    assert kept_frames(81) == 37 and kept_frames(33) == 13
    windows = share_out(60 * 16, **NANO)
    assert added(windows)[:3] == [81, 44, 44] and sum(added(windows)) == 960
    for before, window in zip(windows[:-1], windows[1:], strict=True):
        assert window.kept == before.end - window.start == 37 and window.kept_latents == 10
        assert window.first_new == before.end
        assert 4 * window.latents_after(before) == window.start - before.start
        moved = window.tokens_after(before, 16, 100)
        assert moved * 16 == 100 * (window.start - before.start)
        # the tokens that both hold are those of the kept frames
        assert tokens_of_frames(before.end - before.start, 16, 100) - moved == 231


@pytest.mark.parametrize("num_frames", range(82, 260, 7))
@pytest.mark.parametrize("context", [0, 1, 37])
def test_every_frame_is_made_once(num_frames: int, context: int) -> None:
    for least, most in ((17, 81), (81, 81), (9, 33)):
        pauses = [(at, at + 0.3) for at in (1.7, 4.1, 6.2, 9.0)]
        given = min(context, kept_frames(most))
        windows = share_out(
            num_frames, fps=16, mel_hz=100, least=least, most=most, context=given, pauses=pauses
        )
        assert windows[0].first_new == given and windows[-1].end == num_frames
        for before, window in zip(windows[:-1], windows[1:], strict=True):
            assert window.first_new == before.end and window.start > before.start
            assert window.start % 4 == 0 and (before.end - before.start) % 4 == 1
        for window in windows:
            assert least <= window.num_frames <= most and window.num_frames % 4 == 1
            assert window.end - window.start <= window.num_frames


def test_borders_move_to_pauses() -> None:
    windows = share_out(300, **NANO, pauses=[(4.0, 4.1), (4.2, 4.4), (6.0, 7.0)])
    ends = [window.end for window in windows[:-1]]
    assert 4.2 <= ends[0] / 16 <= 4.4  # the last one there is
    assert 6.0 <= ends[1] / 16 <= 7.0
    assert ends[2] - ends[1] == 44  # no pause: as much as a window adds
    early = share_out(300, **NANO, pauses=[(2.0, 2.4)])
    assert early[0].end == 81  # too early: half of the window would be made for nothing


def test_a_rate_that_shares_no_border_is_refused() -> None:
    with pytest.raises(ValueError, match="add less than"):
        share_out(200, fps=17, mel_hz=100, least=17, most=33)
    assert len(share_out(30, fps=17, mel_hz=100, least=17, most=33)) == 1


def test_words_have_the_times_of_their_phonemes() -> None:
    speech = time_text(TEXT)
    assert len(speech.words) > 30
    assert all(
        one.end_s <= other.start_s + 1e-9 for one, other in zip(speech.words, speech.words[1:], strict=False)
    )
    comma = next(word for word in speech.words if speech.text[word.place :].startswith("and welcome"))
    pause = next(p for p in speech.phonemes if p.symbol == "pause")
    assert pause.start_s < comma.start_s <= pause.end_s + 0.05


def test_an_emotion_has_its_pace() -> None:
    lasts = {emotion: time_text(TEXT, emotion=emotion).end_s for emotion in ("sad", "neutral", "angry")}
    assert lasts["sad"] > 1.1 * lasts["neutral"] > 1.15 * lasts["angry"]


def test_a_text_is_shared_out_whole_and_in_order() -> None:
    speech = fitted(time_text(TEXT), 0.15, 60.0)
    borders = [0.0, 2.5, 5.0, 7.5, 10.0, 30.0]
    parts = [speech.within(a, b) for a, b in zip(borders[:-1], borders[1:], strict=True)]
    assert " ".join(part.text for part in parts).split() == TEXT.split()
    for part in parts:
        assert all(0 < p.end_s and p.start_s < 30 for p in part.phonemes)
    assert sum(len(part.phonemes) for part in parts) - len(speech.phonemes) <= len(borders)
    assert speech.within(100.0, 105.0).text == "" and not speech.within(100.0, 105.0).phonemes


def test_pauses_are_between_words_that_are_said() -> None:
    speech = time_text("One day, two days.")
    (pause,) = speech.pauses()
    day = next(word for word in speech.words if speech.text[word.place :].startswith("two"))
    assert pause[0] < day.start_s <= pause[1] + 0.05
    assert time_text("Yes").pauses() == []


def test_chinese_is_shared_out_by_its_syllables() -> None:
    speech = time_text("今天天气很好，my friend 再见。", "zh")
    assert len(speech.words) == 10 and not speech.phonemes
    half = speech.within(0.0, speech.words[4].end_s), speech.within(speech.words[4].end_s, 60.0)
    assert half[0].text == "今天天气很" and half[1].text == "好，my friend 再见。"


def test_speech_is_pressed_up_to_a_point_and_the_figures_are_told() -> None:
    speech = time_text(TEXT)
    faster = fitted(speech, 0.5, speech.end_s / 1.2)
    assert faster.end_s - 0.5 == pytest.approx(speech.end_s / 1.2)
    assert faster.words[-1].end_s == pytest.approx(faster.end_s, abs=0.01)
    with pytest.raises(
        InputError, match=rf"{speech.end_s:.2f} s .* 1.50 times its pace \(at most {MAX_SPEED_UP}\)"
    ):
        fitted(speech, 0.5, speech.end_s / 1.5)


def test_texts_join_at_their_own_times() -> None:
    one, two = fitted(time_text("Good morning."), 1.0, 9.0), fitted(time_text("Good night."), 5.0, 9.0)
    both = joined([one, two])
    assert both.text == "Good morning. Good night."
    assert both.within(0.0, 4.0).text == "Good morning." and both.within(4.0, 9.0).text == "Good night."
    assert both.pauses()[-1][0] < 4.0 < both.pauses()[-1][1]
