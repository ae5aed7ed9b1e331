"""Which audio a latent frame hears and which picture an audio token sees, worked by hand."""

import pytest
import textbook

from uniavgen_cli.models.alignment import (
    SharedSource,
    VideoSource,
    audio_windows,
    group_sources,
    video_sources,
)


def test_windows_at_the_ends_of_the_sound() -> None:
    # 2 latent frames are 5 pixel frames, of 2 tokens each: frame 1 spans tokens 2 to 9, and 4 on either side.
    first, second = audio_windows(2, 10)
    assert second == (0, 0, *range(10), 9, 9, 9, 9)
    # Frame 0 spans token 0 and 4 more on either side: -4 to 4, made as long as the other by going left.
    assert first == (*[0] * 11, 0, 1, 2, 3, 4)


def test_a_short_window_in_the_middle_grows_on_the_right_first() -> None:
    # 4 latent frames are 13 pixel frames, of 11 / 13 tokens each. Frame 2 spans pixel frames 5 to 8, which is
    # tokens 4 to 7; one more before and two more behind make 7, and frame 3 has 8.
    windows = audio_windows(4, 11)
    assert {len(window) for window in windows} == {8}
    assert windows[2] == (3, 4, 5, 6, 7, 8, 9, 10)


@pytest.mark.parametrize(
    ("frames", "tokens"), [(1, 7), (2, 10), (5, 100), (6, 47), (9, 206), (21, 506), (21, 331)]
)
def test_windows_are_those_of_the_formula(frames: int, tokens: int) -> None:
    assert [list(window) for window in audio_windows(frames, tokens)] == textbook.windows_of(frames, tokens)


def test_one_frame_is_one_window() -> None:
    assert audio_windows(1, 3) == ((0, 0, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 2),)  # -6 to 6, 3 tokens a frame


def test_sources_between_and_within_latent_frames() -> None:
    sources = video_sources(2, 10)
    assert sources[0] == VideoSource(0, 1, 1.0, 0.0)  # on pixel frame 0
    assert sources[1] == VideoSource(0, 1, 0.5, 0.5)  # halfway to pixel frame 1, of latent frame 1
    assert sources[3] == VideoSource(1, 1, 0.5, 0.5)  # pixel frames 1 and 2 are one latent frame
    assert sources[9] == VideoSource(1, 1, 0.5, 1.5)  # past the last pixel frame: the weights sum to 2


def test_groups_share_what_can_be_shared() -> None:
    groups = group_sources(video_sources(2, 10))
    assert groups.shared == (SharedSource(1, 1.0, (2, 3, 4, 5, 6, 7)), SharedSource(1, 2.0, (8, 9)))
    assert [token for token, _ in groups.mixed] == [0, 1]


def test_groups_from_a_later_token_on() -> None:
    groups = group_sources(video_sources(2, 10), first=5)
    assert groups.shared == (SharedSource(1, 1.0, (5, 6, 7)), SharedSource(1, 2.0, (8, 9)))
    assert groups.mixed == ()


def test_every_token_is_in_one_group() -> None:
    groups = group_sources(video_sources(21, 506))
    tokens = [token for group in groups.shared for token in group.tokens] + [t for t, _ in groups.mixed]
    assert sorted(tokens) == list(range(506))
    assert len(groups.mixed) < 0.3 * 506
