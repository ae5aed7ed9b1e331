"""A face anywhere in a picture: seen as those that were learnt, laid back, and all around it stays."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from uniavgen_cli.config import load_preset
from uniavgen_cli.data.avatar import Rendered, render, sample_identity, sample_motion
from uniavgen_cli.data.dataset import as_seen, sample_clip
from uniavgen_cli.engine.conditions import seen_frames
from uniavgen_cli.engine.engine import Engine
from uniavgen_cli.engine.request import Request, check
from uniavgen_cli.errors import InputError
from uniavgen_cli.media.closeup import MOUTH, MOUTH_PLACE, CloseUp, find_closeup, moved_within, square_of
from uniavgen_cli.media.video import read_frames, write_clip


def drawn(scale: float, x: float = 0.0, y: float = 0.45, height: int = 360, width: int = 480) -> Rendered:
    """One picture of somebody whose face has that size and place."""
    rng = np.random.default_rng(10)
    who = replace(sample_identity(rng), scale=scale, position=(x, y))
    return render(who, "neutral", np.zeros((1, 7)), sample_motion(rng, 1, 16, "neutral"), height, width)


SHARE = 0.5  # of a face where nano learnt, as its preset has it


@pytest.mark.parametrize(
    ("scale", "x", "y"),
    [
        (0.4, 0.0, 0.45),
        (0.4, 0.3, 0.4),
        (0.4, -0.42, 0.6),
        (0.8, 0.1, 0.3),
        (0.8, 0.4, 0.5),
        (1.5, 0.0, 0.45),
    ],
)
def test_a_closeup_is_a_square_with_the_mouth_in_its_place(scale: float, x: float, y: float) -> None:
    picture = drawn(scale, x, max(y, 0.2 * scale))
    near = find_closeup(picture.frames[0], SHARE)
    assert near is not None and (near.height, near.width) == (360, 480)
    x0, y0, x1, y1 = picture.face_boxes[0]
    assert (y1 - y0) / near.side == pytest.approx(SHARE, rel=0.15)
    left, top, right, bottom = picture.mouth_boxes[0]
    across, down = (left + right) / 2 - near.left, (top + bottom) / 2 - near.top
    assert down / near.side == pytest.approx(0.668, abs=0.05)
    assert across / near.side == pytest.approx(0.5, abs=0.05)
    assert near.cut(picture.frames[0], 128).shape == (128, 128, 3)


def test_what_lies_beyond_the_picture_is_its_edge() -> None:
    picture = np.arange(40, 140, dtype=np.uint8)[:, None, None].repeat(100, 1).repeat(3, 2)
    near = CloseUp(
        height=100, width=100, left=-30, top=-50, side=200, scale=1.0, out_height=100, out_width=100
    )
    cut = near.cut(picture, 200)
    assert (cut[:50] == 40).all() and (cut[150:] == 139).all()
    assert np.array_equal(cut[50:150, 60], picture[:, 0])
    assert np.array_equal(near.laid(cut[None], picture, cut)[0], picture)


@pytest.mark.parametrize(
    ("height", "width", "side", "size", "written"),
    [
        (360, 480, 300, None, (360, 480)),  # no larger than it is
        (160, 192, 96, None, (160, 192)),
        (1000, 2000, 900, None, (426, 854)),  # three times 128 for the close-up
        (1000, 4000, 200, None, (256, 1024)),  # the long side
        (360, 480, 300, 128, (128, 170)),
        (160, 192, 96, 320, (320, 384)),
    ],
)
def test_what_is_written_is_as_large_as_it_is_worth_or_as_asked(
    height: int, width: int, side: int, size: int | None, written: tuple[int, int]
) -> None:
    near = replace(square_of(height, width), side=side).written(128, size)
    assert (near.out_height, near.out_width) == written
    assert near.around(np.zeros((height, width, 3), np.uint8)).shape[:2] == written


def test_a_face_in_its_place_has_all_of_its_square_and_none_has_no_closeup() -> None:
    usual = sample_clip(5, 0, lengths=(49,), sizes=((128, 128),)).draw().frames[0]
    near = find_closeup(usual, SHARE)
    assert near is not None and near.face is not None and replace(near, face=None) == square_of(128, 128)
    wide = cv2.copyMakeBorder(usual, 0, 0, 0, 40, cv2.BORDER_REPLICATE)
    near = find_closeup(wide, SHARE)
    assert near is not None and near.side == pytest.approx(128, rel=0.2)
    assert find_closeup(np.full((300, 400, 3), 90, np.uint8), SHARE) is None
    rng = np.random.default_rng(10)  # clouds in which the detector sees half a face
    clouds = sum(cv2.resize(rng.normal(size=(k, k, 3)), (480, 360)) for k in (4, 8, 16, 32, 64))
    picture = np.clip(127 + 40 * clouds, 0, 255).astype(np.uint8)
    assert find_closeup(picture, SHARE) is None
    with pytest.raises(InputError, match="no face number 3"):
        find_closeup(drawn(0.4).frames[0], SHARE, face_index=3)


def test_faces_are_learnt_in_the_place_and_size_in_which_closeups_show_them() -> None:
    shares, mouths = [], []
    for index in range(16):
        clip = sample_clip(5, index, lengths=(33, 49, 81))
        still = clip.motion.calmer(0.25)
        boxes = replace(clip, identity=as_seen(clip.identity), motion=still).draw().face_boxes
        x0, y0, x1, y1 = boxes.mean(0) / 128
        shares.append(y1 - y0)
        mouths.append(((x0 + x1) / 2, (y0 + y1) / 2 + MOUTH * (y1 - y0)))
    assert np.mean(shares) == pytest.approx(SHARE, abs=0.02) and np.std(shares) < 0.03
    assert np.mean(mouths, 0) == pytest.approx(MOUTH_PLACE, abs=0.015) and np.std(mouths, 0).max() < 0.03


def test_what_was_cut_out_is_laid_back_where_it_was() -> None:
    picture = drawn(0.4).frames[0]
    near = CloseUp(
        height=360, width=480, left=100, top=60, side=128, scale=1.0, out_height=360, out_width=480
    )
    cut = near.cut(picture, 128)
    assert cut.shape == (128, 128, 3)
    assert np.array_equal(near.laid(cut[None], picture, cut)[0], picture)
    black = near.laid(np.zeros((2, 128, 128, 3), np.uint8), picture, cut)
    assert black.shape == (2, 360, 480, 3)
    assert not black[:, 80:160, 120:200].any()  # the middle
    outside = np.ones((360, 480), bool)
    outside[60:188, 100:228] = False
    assert np.array_equal(black[0][outside], picture[outside])
    steps = np.abs(np.diff(black[0, 120, 95:125].astype(int), axis=0)).max()
    assert steps < 40  # the edge is no cut


def test_a_closeup_at_the_pictures_edge_has_no_seam_there() -> None:
    picture = np.full((200, 300, 3), 200, np.uint8)
    near = CloseUp(height=200, width=300, left=0, top=72, side=128, scale=1.0, out_height=200, out_width=300)
    laid = near.laid(np.zeros((1, 128, 128, 3), np.uint8), picture, near.cut(picture, 128))[0]
    assert not laid[120:, 0].any() and laid[72, 64].any()


def test_what_has_not_moved_stays_as_sharp_as_it_was() -> None:
    rng = np.random.default_rng(4)
    picture = rng.integers(60, 200, (256, 256, 3)).astype(np.uint8)
    near = square_of(256, 256)
    still = near.cut(picture, 64)
    moved = still.copy()
    moved[40:50, 20:44] = 20
    moved[:8] += 3  # less than a change
    laid = near.laid(moved[None], picture, still)[0].astype(int)
    assert np.abs(laid[:128] - picture[:128]).max() <= 6
    assert np.abs(laid[170:190, 100:156] - 20).max() <= 8


def test_of_a_known_face_mouth_and_eyes_move_in_the_light_of_the_picture() -> None:
    picture = drawn(0.8, height=256, width=256)
    frame = picture.frames[0]
    near = find_closeup(frame, SHARE)
    assert near is not None
    still = near.cut(frame, 128)
    brighter = np.clip(still.astype(int) + 20, 0, 255).astype(np.uint8)
    painted = brighter.copy()
    scale = 128 / near.side
    corner = np.array([near.left, near.top] * 2)
    left, top, right, bottom = ((picture.mouth_boxes[0] - corner) * scale).astype(int)
    row, column = (top + bottom) // 2, (left + right) // 2
    painted[row - 2 : row + 3, column - 6 : column + 7] = 0  # an open mouth
    painted[:12] = 255  # and what nobody asked for
    moved = moved_within(near._moving(128), painted, still).astype(int)
    change = np.abs(moved - still).max(-1)
    assert change[:24].max() == 0 and change[:, :20].max() == 0
    assert moved[row, column].max() < 40 < still[row, column].min()
    ring = moved_within(near._moving(128), brighter, still).astype(int)
    assert np.abs(ring - still).max() <= 6  # lighter as a whole is no movement


def test_the_small_face_moves_and_nothing_else(tmp_path: Path) -> None:
    picture = drawn(0.4, 0.2, 0.4)
    face = tmp_path / "small.png"
    cv2.imwrite(str(face), picture.frames[0][:, :, ::-1])
    out = tmp_path / "small.mp4"
    spoken = Request(task="generate", face=face, speech="Good morning to you all.")
    preset = load_preset("nano")
    plan = check(spoken, preset)
    assert plan.closeup is not None and (plan.spec.height, plan.spec.width) == (128, 128)
    exact = check(replace(spoken, size=(128, 160)), preset)
    assert exact.closeup is not None and (exact.out_height, exact.out_width) == (128, 160)
    double = check(replace(spoken, size=256), preset)
    assert (double.out_height, double.spec.height) == (256, 128)
    assert check(spoken, load_preset("nano", ["clip.closeup=0"])).closeup is None
    free = check(spoken, load_preset("nano", ["clip.still_head=false"])).closeup
    assert free == replace(plan.closeup, face=None) != plan.closeup

    Engine.from_preset(preset).run(plan).save(out)
    frames = read_frames(out, 16, plan.out_height, plan.out_width).astype(float)
    assert frames.shape[1:3] == (plan.out_height, plan.out_width)
    scale = plan.out_width / 480
    x0, y0, x1, y1 = (picture.mouth_boxes[0] * scale).astype(int)
    moved = frames.std(0).mean(-1)
    assert moved[y0:y1, x0:x1].mean() > 4 * moved[:, : plan.out_width // 4].mean()


def test_a_wide_clip_goes_on_as_sharp_as_it_was_around_the_face(tmp_path: Path) -> None:
    picture = drawn(0.5, 0.25, 0.4, height=270, width=480).frames[0]
    given, out = tmp_path / "given.mp4", tmp_path / "on.mp4"
    write_clip(given, picture[None].repeat(40, 0), np.zeros(60000, np.float32), 16, 24000)
    preset = load_preset("nano")
    plan = check(Request(task="continue", video=given, speech="Good morning."), preset)
    near = plan.closeup
    assert near is not None and (near.out_height, near.out_width) == (270, 480)
    assert (plan.spec.height, plan.spec.width) == (128, 128)

    Engine.from_preset(preset).run(plan).save(out)
    frames = read_frames(out, 16, 270, 480)
    assert len(frames) > 60
    old, new = frames[30].astype(float), frames[45:].astype(float)
    outside = np.ones((270, 480), bool)
    outside[max(0, near.top) : near.top + near.side, max(0, near.left) : near.left + near.side] = False
    assert np.abs(new - old)[:, outside].mean() < 2
    inside = new[:, ~outside].std(0).mean()
    assert inside > 4 * new[:, outside].std(0).mean()


@pytest.mark.parametrize("num_frames", [33, 120])
def test_the_lips_of_a_wide_video_are_seen_from_near(num_frames: int, tmp_path: Path) -> None:
    picture = drawn(0.5, 0.25, 0.4, height=270, width=480).frames[0]
    given = tmp_path / "given.mp4"
    write_clip(given, picture[None].repeat(num_frames, 0), np.zeros(1500 * num_frames, np.float32), 16, 24000)
    preset = load_preset("nano")
    plan = check(Request(task="dub", video=given, speech="Good morning."), preset)
    near = plan.closeup
    assert near is not None and (near.height, near.width) == (270, 480)
    seen = np.stack(list(seen_frames(plan)))
    assert np.abs(seen[-1].astype(int) - near.cut(picture, 128)).mean() < 4

    clip = Engine.from_preset(preset).run(plan)
    assert clip.frames.shape == (num_frames, 128, 128, 3)
    assert np.abs(clip.frames[-1].astype(int) - near.cut(picture, 128)).mean() < 6
    clip.save(tmp_path / "dubbed.mp4")
    assert len(read_frames(tmp_path / "dubbed.mp4", 16, 270, 480)) == num_frames
    clip.close()
