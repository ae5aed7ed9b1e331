"""Drawn clips made more like photographs: much stands still on them, what they say stays as it was."""

import numpy as np
import pytest

from uniavgen_cli.data.avatar import Rendered
from uniavgen_cli.data.dataset import SpeakingClip, sample_clip
from uniavgen_cli.data.photograph import developed, photographed


@pytest.fixture(scope="module")
def clip() -> SpeakingClip:
    return sample_clip(31, 4, lengths=(33, 49, 81), sizes=((128, 128),))


def test_the_same_numbers_give_the_same_pictures_and_the_mouth_does_what_it_did(clip: SpeakingClip) -> None:
    drawn = clip.draw()
    first, again, other = (photographed(drawn, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)
    np.testing.assert_array_equal(first.opening, drawn.opening)


def test_the_mouth_moves_where_it_did_whatever_lies_over_the_picture(clip: SpeakingClip) -> None:
    drawn = clip.draw()
    x0, y0, x1, y1 = drawn.mouth_boxes.mean(0).astype(int)
    dark = drawn.frames[:, y0:y1, x0:x1].mean((1, 2, 3))
    for seed in range(8):
        made = photographed(drawn, np.random.default_rng(seed)).frames[:, y0:y1, x0:x1].mean((1, 2, 3))
        assert np.corrcoef(made, dark)[0, 1] > 0.9


def test_what_is_bent_and_laid_over_it_stands_still() -> None:
    grey = np.full((3, 96, 128, 3), 128, np.uint8)
    boxes = np.tile(np.array([[56.0, 56.0, 72.0, 64.0]]), (3, 1))
    still = Rendered(frames=grey, face_boxes=boxes, mouth_boxes=boxes, opening=np.zeros(3))
    frames = photographed(still, np.random.default_rng(0)).frames
    assert np.array_equal(frames[0], frames[2]) and frames[0].std() > 8


def test_light_and_grain_stand_still() -> None:
    grey = np.full((3, 96, 128, 3), 128, np.uint8)
    frames = developed(grey, np.random.default_rng(0))
    assert np.array_equal(frames[0], frames[2])
    assert frames[0].std() > 2
