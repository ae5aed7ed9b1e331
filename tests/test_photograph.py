"""Drawn clips made more like photographs: the head goes elsewhere, what it says stays as it was."""

from dataclasses import replace

import numpy as np
import pytest

from uniavgen_cli.data.avatar import sample_identity
from uniavgen_cli.data.dataset import SpeakingClip, sample_clip
from uniavgen_cli.data.photograph import LARGEST, SMALLEST, developed, photographed, reframed


@pytest.fixture(scope="module")
def clip() -> SpeakingClip:
    return sample_clip(31, 4, lengths=(33, 49, 81), sizes=((128, 128),))


def test_the_head_goes_elsewhere_and_the_mouth_stays_in_the_frame(clip: SpeakingClip) -> None:
    scales, places = [], []
    for number in range(12):
        spec = replace(clip.spec, width=(128, 192)[number % 2], height=(128, 192)[number % 3 == 0])
        drawn = photographed(replace(clip, spec=spec), np.random.default_rng(number))
        x0, y0, x1, y1 = drawn.mouth_boxes.mean(0)
        assert 0 < (x0 + x1) / 2 < spec.width and 0 < (y0 + y1) / 2 < spec.height
        faces = drawn.face_boxes[:, 3] - drawn.face_boxes[:, 1]
        scales.append(faces.mean() / (0.5 * min(spec.width, spec.height)))
        places.append((x0 + x1) / 2 / spec.width)
    assert min(scales) < 0.75 and max(scales) > 1.2
    assert np.std(places) > 0.06


def test_the_same_numbers_give_the_same_pictures_and_the_mouth_does_what_it_did(clip: SpeakingClip) -> None:
    first, again, other = (photographed(clip, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert np.array_equal(first.frames, again.frames)
    assert not np.array_equal(first.frames, other.frames)
    np.testing.assert_array_equal(first.opening, clip.draw().opening)


def test_light_and_grain_stand_still() -> None:
    grey = np.full((3, 96, 128, 3), 128, np.uint8)
    frames = developed(grey, np.random.default_rng(0))
    assert np.array_equal(frames[0], frames[2])
    assert frames[0].std() > 2


def test_scales_are_within_their_bounds() -> None:
    who = sample_identity(np.random.default_rng(3))
    rng = np.random.default_rng(0)
    scales = [reframed(who, rng, 128, 160).scale for _ in range(50)]
    assert SMALLEST <= min(scales) < 0.65 and 1.3 < max(scales) <= LARGEST
