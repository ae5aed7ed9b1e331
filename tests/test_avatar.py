"""Drawn avatars: a seed draws the same person, what is said of them is true, the mouth shows the sound."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from uniavgen_cli.data.avatar import (
    EMOTIONS,
    MOUTH_PARAMETERS,
    Identity,
    Motion,
    render,
    sample_identity,
    sample_motion,
)
from uniavgen_cli.data.captions import describe
from uniavgen_cli.data.preview import contact_sheet, preview, tiled
from uniavgen_cli.media.probe import probe

OPEN, ROUND, PRESS = (MOUTH_PARAMETERS.index(name) for name in ("open", "round", "press"))


def person(seed: int, **changes: object) -> Identity:
    plain = {"glasses": "none", "beard": "none", "scale": 1.0, "position": (0.0, 0.5)}
    return replace(sample_identity(np.random.default_rng(seed)), **{**plain, **changes})  # type: ignore[arg-type]


def still(num_frames: int, **changes: np.ndarray) -> Motion:
    """A motion without motion."""
    zero, pair = np.zeros(num_frames), np.zeros((num_frames, 2))
    parts = {
        "yaw": zero,
        "pitch": zero,
        "roll": zero,
        "sway": pair,
        "blink": zero,
        "gaze": pair,
        "brow": zero,
    }
    return Motion(**{**parts, **changes}, intensity=1.0)


def mouths(**changes: list[float]) -> np.ndarray:
    rows = np.zeros((len(next(iter(changes.values()))), len(MOUTH_PARAMETERS)))
    for name, values in changes.items():
        rows[:, MOUTH_PARAMETERS.index(name)] = values
    return rows


def inside(frame: np.ndarray, box: np.ndarray) -> np.ndarray:
    x0, y0, x1, y1 = np.round(box).astype(int)
    return frame[max(y0, 0) : y1, max(x0, 0) : x1].astype(int)


def test_a_seed_gives_the_same_pictures() -> None:
    drawn = []
    for _ in range(2):
        rng = np.random.default_rng(5)
        identity, motion = sample_identity(rng), sample_motion(rng, 4, 16, "happy")
        drawn.append(render(identity, "happy", rng.random((4, 7)), motion))
    assert np.array_equal(drawn[0].frames, drawn[1].frames)
    assert np.array_equal(drawn[0].opening, drawn[1].opening)


@pytest.mark.parametrize(("height", "width"), [(128, 128), (128, 192), (192, 128), (160, 128), (64, 96)])
def test_frames_and_boxes_have_the_asked_shape(height: int, width: int) -> None:
    rng = np.random.default_rng(1)
    drawn = render(
        person(1), "neutral", rng.random((5, 7)), sample_motion(rng, 5, 16, "neutral"), height, width
    )
    assert drawn.frames.shape == (5, height, width, 3) and drawn.frames.dtype == np.uint8
    assert drawn.face_boxes.shape == drawn.mouth_boxes.shape == (5, 4) and drawn.opening.shape == (5,)
    x0, y0, x1, y1 = drawn.face_boxes.T
    assert (0 < x0).all() and (x1 < width).all() and (0 < y0).all() and (y1 < height).all()
    middle = (drawn.mouth_boxes[:, :2] + drawn.mouth_boxes[:, 2:]) / 2
    assert (x0 < middle[:, 0]).all() and (middle[:, 0] < x1).all()
    assert ((y0 + y1) / 2 < middle[:, 1]).all() and (middle[:, 1] < y1).all()


@pytest.mark.parametrize(("scale", "position"), [(0.3, (0.4, 0.2)), (2.5, (-0.3, 0.9)), (1.0, (1.5, 0.5))])
def test_a_face_may_leave_the_frame(scale: float, position: tuple[float, float]) -> None:
    frames = render(person(2, scale=scale, position=position), "sad", mouths(open=[0.5]), still(1)).frames
    assert frames.shape == (1, 128, 128, 3) and frames.std() > 0


def test_opening_follows_the_jaw_and_pressed_lips_are_shut() -> None:
    amount = np.linspace(0, 1, 9)
    opening = render(person(3), "neutral", mouths(open=list(amount)), still(9)).opening
    assert opening[0] < 0.01 and (np.diff(opening) > 0).all() and 0.15 < opening[-1] < 0.3
    shut = render(person(3), "neutral", mouths(open=[1.0], teeth=[1.0], press=[1.0]), still(1)).opening
    assert shut[0] == pytest.approx(0, abs=1e-9)


def test_the_opening_is_the_dark_gap_that_is_drawn() -> None:
    identity = person(4, skin=(236.0, 186.0, 148.0), lip_rgb=(200.0, 110.0, 100.0))
    drawn = render(identity, "neutral", mouths(open=[0.5, 1.0], round=[1.0, 1.0]), still(2), 512, 512)
    face_height = 2 * 0.25 * 512
    for frame, box, opening in zip(drawn.frames, drawn.mouth_boxes, drawn.opening, strict=True):
        dark = (inside(frame, box).max(-1) < 110).sum(0).max()  # tongue and teeth are out of the way
        assert dark == pytest.approx(opening * face_height, rel=0.25)


@pytest.mark.parametrize("name", MOUTH_PARAMETERS)
def test_every_mouth_parameter_shows_at_128_pixels(name: str) -> None:
    basis = {"open": [0.3, 0.3]}
    rows = mouths(**{**basis, name: [0.3 if name == "open" else 0.0, 1.0]})
    for seed in range(3):
        drawn = render(person(seed), "neutral", rows, still(2))
        before, after = (inside(frame, drawn.mouth_boxes.mean(0)) for frame in drawn.frames)
        assert (np.abs(before - after).max(-1) > 40).sum() >= 8


def test_only_the_mouth_and_jaw_move_when_only_they_do() -> None:
    drawn = render(person(6, hair_style="short"), "neutral", mouths(open=[0.0, 1.0]), still(2))
    changed = np.abs(drawn.frames[0].astype(int) - drawn.frames[1]).max(-1) > 8
    x0, y0, x1, y1 = np.round(drawn.face_boxes[1]).astype(int)
    assert changed.any() and not changed[: (y0 + y1) // 2].any()
    assert not changed[:, : x0 - 3].any() and not changed[:, x1 + 3 :].any()


def test_a_turned_head_moves_its_features_and_a_blink_closes_the_eyes() -> None:
    turned = render(
        person(7), "neutral", mouths(open=[0, 0]), still(2, yaw=np.array([-0.2, 0.2]))
    ).mouth_boxes
    assert turned[1, 0] - turned[0, 0] > 5
    eyes = render(
        person(8, hair_style="bald"), "neutral", mouths(open=[0, 0]), still(2, blink=np.array([0.0, 1.0]))
    )
    band = [frame[50:68].astype(int) for frame in eyes.frames]
    white = [(pixels.min(-1) > 225).sum() for pixels in band]
    assert white[0] > white[1]


def test_a_calmer_head_moves_less_about_the_same_place() -> None:
    motion = sample_motion(np.random.default_rng(0), 80, 16, "happy")
    calm = motion.calmer(0.25)
    for lively, less in ((motion.yaw, calm.yaw), (motion.sway, calm.sway), (motion.brow, calm.brow)):
        np.testing.assert_allclose(less.std(0), 0.25 * lively.std(0))
        np.testing.assert_allclose(less.mean(0), lively.mean(0), atol=1e-12)
    assert calm.blink is motion.blink and calm.gaze is motion.gaze


def test_motion_is_slow_and_blinks_come() -> None:
    motion = sample_motion(np.random.default_rng(0), 160, 16, "neutral")
    for angle in (motion.yaw, motion.pitch, motion.roll):
        assert np.abs(angle).max() < 0.6 and np.abs(np.diff(angle)).max() < 0.06
    shut = motion.blink > 0.9
    assert 2 <= (np.diff(shut.astype(int)) == 1).sum() <= 9 and (motion.blink == 0).mean() > 0.7


def test_emotions_look_different() -> None:
    faces = [
        render(person(9), emotion, mouths(open=[0.0]), still(1)).frames[0].astype(int) for emotion in EMOTIONS
    ]
    for i, one in enumerate(faces):
        for other in faces[i + 1 :]:
            assert (np.abs(one - other).max(-1) > 30).sum() > 15


def test_people_differ() -> None:
    people = [sample_identity(np.random.default_rng(seed)) for seed in range(200)]
    seen = {key: {one.attributes[key] for one in people} for key in people[0].attributes}
    assert seen["gender"] == {"woman", "man"} and len(seen["hair_colour"]) >= 9
    assert len(seen["hair_style"]) == 8 and len(seen["fringe"]) == 5 and len(seen["skin"]) >= 7
    assert len(seen["background"]) == 5 and len(seen["background_colour"]) >= 10
    assert {one.beard for one in people if one.gender == "woman"} == {"none"}


def test_with_less_variety_people_differ_in_what_captions_name() -> None:
    seeds = range(60)
    usual, alike = ([sample_identity(np.random.default_rng(s), v) for s in seeds] for v in (1.0, 0.2))
    for one, other in zip(usual, alike, strict=True):
        assert one.attributes == other.attributes
    for name in ("scale", "face_width", "eye_gap", "light"):
        wide, narrow = (np.array([getattr(one, name) for one in people]) for people in (usual, alike))
        middle = (narrow - 0.2 * wide) / 0.8
        assert np.ptp(middle) < 0.2 * np.ptp(wide) and 0.15 < np.std(narrow - middle) / np.std(wide) < 0.25
    assert len({one.seed for one in alike}) == 1 and len({one.skin for one in alike}) > 20

    still = sample_motion(np.random.default_rng(5), 1, 16, "sad").stiller(0.0)
    assert not any(getattr(still, name).any() for name in ("yaw", "pitch", "roll", "sway", "gaze", "blink"))


def test_colours_are_what_they_are_called() -> None:
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        walls = [
            one
            for one in map(person, range(250))
            if one.background_name == name and one.background == "plain"
        ]
        assert walls
        for one in walls:
            corner = render(one, "neutral", mouths(open=[0]), still(1)).frames[0, 2:6, 2:6].mean((0, 1))
            assert corner.argmax() == channel


def test_captions_say_nothing_untrue() -> None:
    texts, gendered, coloured = set(), 0, 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        identity, emotion = sample_identity(rng), EMOTIONS[seed % len(EMOTIONS)]
        caption = describe(identity, emotion, rng)
        truth = {**identity.attributes, "emotion": emotion}
        assert all(truth[key] == value for key, value in caption.attributes.items())
        words = set(caption.text.lower().replace(",", " ").replace("-", " ").split())
        named = caption.attributes
        assert (named.get("glasses") == "yes") == (
            bool(words & {"glasses", "spectacles"}) and "no" not in words
        )
        if "background_colour" in named:
            assert named["background_colour"] in words
        if "clothes_colour" in named:
            assert named["clothes_colour"] in words
        assert not words & (
            {"man", "guy", "gentleman"} if identity.gender == "woman" else {"woman", "lady", "girl"}
        )
        assert len(words) <= 48 and "  " not in caption.text
        texts.add(caption.text)
        gendered += "gender" in named
        coloured += "hair_colour" in named
    assert len(texts) > 390 and gendered > 370 and coloured > 360
    assert any(text.endswith("says") for text in texts) and any(text.endswith("speaking") for text in texts)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="4 frames"):
        render(person(0), "neutral", mouths(open=[0, 0]), still(4))
    with pytest.raises(ValueError, match="bored.*neutral"):
        render(person(0), "bored", mouths(open=[0]), still(1))


def test_a_sheet_holds_every_avatar() -> None:
    assert contact_sheet(0, 9, side=32).shape == (64, 7 * 32, 3)
    pictures = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    assert tiled(pictures, 2)[:, :, 0].tolist() == [[0, 0, 1, 1]] * 2 + [[2, 2, 255, 255]] * 2


def test_preview_writes_pictures_and_a_clip_with_sound(tmp_path) -> None:  # type: ignore[no-untyped-def]
    sheet, strip, clip = preview(tmp_path / "new", count=2, seed=3)
    assert cv2.imread(str(sheet)).shape == (256, 512, 3) and cv2.imread(str(strip)).shape[1] == 7 * 256
    info = probe(clip)
    assert info.video is not None and info.audio is not None
