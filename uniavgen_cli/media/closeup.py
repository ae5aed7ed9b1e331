"""A given picture is seen with its face where the model learnt faces to be; what it makes is laid back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from uniavgen_cli.media.face import Box, choose_face, detect_faces
from uniavgen_cli.media.image import resized

MOUTH = 0.29  # of the face's height that the mouth lies below its middle
MOUTH_PLACE = (0.5, 0.668)  # of the close-up's side, across and down, where nano learnt mouths to be
ASTRAY = (0.02, 0.02)  # of the side that a mouth may lie beside that place
AS_LARGE = (0.93, 1.08)  # of the usual height a face may have
SURE_SCORE = 0.7  # of the face: what is less may be a leaf, and is not worth leaving the picture for
SEAM = 0.1  # of the side over which the close-up goes over into the picture around it
LONGEST = 1024  # pixels of the written picture's long side
LARGER = 3  # times the model's square, at most, that its place in the written picture is
# What of a given face moves, ellipses: how far below its middle, and half as wide and as high, in shares of
# its height. All else stays: of faces it was never taught a model moves what should not.
MOVING = ((MOUTH, 0.33, 0.24), (-0.13, 0.45, 0.2))
SOFT = 0.3  # of such an ellipse, over which what moves goes over into what stays
STILL, MOVED = 6.0, 18.0  # levels of change: up to the one the given picture stays, from the other it doesn't


@dataclass(frozen=True, kw_only=True)
class CloseUp:
    """A square of a picture of `height` and `width`, by its corner and side in pixels, and the picture to
    write, `scale` as large. The square may reach beyond the picture, whose edges go on there. `face` is the
    box x0 y0 x1 y1 of the face in it, in the same pixels; without one all of the square may move.
    """

    height: int
    width: int
    left: int
    top: int
    side: int
    scale: float
    out_height: int
    out_width: int
    face: Box | None = None

    def cut(self, picture: np.ndarray, side: int) -> np.ndarray:
        """The close-up (side, side, 3) of the picture (h, w, 3) uint8."""
        right, bottom = self.left + self.side, self.top + self.side
        part = picture[max(0, self.top) : bottom, max(0, self.left) : right]
        over, under = max(0, -self.top), max(0, bottom - self.height)
        before, after = max(0, -self.left), max(0, right - self.width)
        square = cv2.copyMakeBorder(part, over, under, before, after, cv2.BORDER_REPLICATE)
        return resized(square, side, side)

    def spread(self, square: np.ndarray) -> np.ndarray:
        """A picture as it is written of which `square` (s, s, 3) uint8 is the close-up: its edges go on."""
        assert self.scale == 1
        under, beside = self.height - self.top - self.side, self.width - self.left - self.side
        near = resized(square, self.side, self.side)
        whole = cv2.copyMakeBorder(near, self.top, under, self.left, beside, cv2.BORDER_REPLICATE)
        whole = cv2.GaussianBlur(whole, (0, 0), SEAM * self.side / 2)  # an edge that goes on is streaks
        whole[self.top : self.top + self.side, self.left : self.left + self.side] = near
        return whole

    def around(self, picture: np.ndarray) -> np.ndarray:
        """The picture (h, w, 3) uint8 as it is written, (out_height, out_width, 3)."""
        return resized(picture, self.out_height, self.out_width)

    def written(self, side: int, size: int | None) -> "CloseUp":
        """The same with the short side of what is written `size` pixels, or as large as the picture is: no
        larger than three times what a model makes that sees squares of `side`, and 1024 on the long side.
        """
        short, long = min(self.height, self.width), max(self.height, self.width)
        scale = size / short if size else min(LARGER * side / min(self.side, short), 1.0, LONGEST / long)
        out_height, out_width = _even(self.height, self.width, scale)
        return replace(self, scale=scale, out_height=out_height, out_width=out_width)

    def laid(self, frames: np.ndarray, around: np.ndarray, still: np.ndarray) -> np.ndarray:
        """Close-ups (n, s, s, 3) uint8 in their place in what is `around` them, n pictures of its size.

        Where they are as `still` (s, s, 3) uint8, what the model saw of that, they are as sharp as it is. Of
        a face that is known mouth and eyes move, in the light of what is around them.
        """
        parts = self._moving(len(still))
        left, top, side = (round(pixels * self.scale) for pixels in (self.left, self.top, self.side))
        rows = slice(max(0, top), min(self.out_height, top + side))
        columns = slice(max(0, left), min(self.out_width, left + side))
        seen = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
        share = self._shares(side, left, top)[seen]
        place = around[rows, columns].astype(np.float32)
        unseen = place - resized(still, side, side)[seen]
        laid = np.repeat(around[None], len(frames), axis=0)
        for frame, whole in zip(frames, laid, strict=True):
            frame = moved_within(parts, frame, still) if parts else frame
            near = resized(frame, side, side)[seen].astype(np.float32)
            stays = cv2.resize(stayed(frame, still), (side, side), interpolation=cv2.INTER_LINEAR)
            near += stays[seen][:, :, None] * unseen
            whole[rows, columns] = np.rint(np.clip(place + share * (near - place), 0, 255))
        return laid

    def _moving(self, side: int) -> list[np.ndarray]:
        """How much each of the parts that move does (side, side), 0 to 1; none without a known face."""
        if self.face is None:
            return []
        scale = side / self.side
        x0, y0, x1, y1 = (scale * (v - o) for v, o in zip(self.face, (self.left, self.top) * 2, strict=True))
        tall = y1 - y0
        rows, columns = np.mgrid[:side, :side] + 0.5
        parts = []
        for below, wide, high in MOVING:
            across = (columns - (x0 + x1) / 2) / (wide * tall)
            down = (rows - (y0 + y1) / 2 - below * tall) / (high * tall)
            parts.append(np.clip((1 - np.hypot(across, down)) / SOFT, 0, 1).astype(np.float32))
        return parts

    def _shares(self, side: int, left: int, top: int) -> np.ndarray:
        """How much the close-up counts (side, side, 1): less where the picture goes on beyond its edge."""
        rise = np.clip((np.arange(side) + 0.5) / (SEAM * side), 0, 1).astype(np.float32)
        ones = np.ones(side, np.float32)
        across = (rise if left > 0 else ones) * (rise[::-1] if left + side < self.out_width else ones)
        down = (rise if top > 0 else ones) * (rise[::-1] if top + side < self.out_height else ones)
        return np.outer(down, across)[:, :, None]


def moved_within(parts: Sequence[np.ndarray], frame: np.ndarray, still: np.ndarray) -> np.ndarray:
    """The still picture (h, w, 3) uint8 with what moves of a frame within the parts (h, w), 0 to 1.

    Its light is the still picture's: a part is laid in by its differences (Perez et al. 2003, in OpenCV).
    """
    if np.array_equal(frame, still):
        return still  # to the pixel
    whole = still
    for part in parts:
        inside = np.zeros(part.shape, np.uint8)
        inside[1:-1, 1:-1] = 255 * (part[1:-1, 1:-1] > 0)
        if not inside.any():
            continue
        x, y, width, height = cv2.boundingRect(inside)
        middle = x + width // 2, y + height // 2
        share = np.where(inside > 0, part, 0)[:, :, None]
        laid = cv2.seamlessClone(np.ascontiguousarray(frame), whole, inside, middle, cv2.NORMAL_CLONE)
        whole = np.rint(whole + share * (laid.astype(np.float32) - whole)).astype(np.uint8)
    return whole


def stayed(frame: np.ndarray, still: np.ndarray) -> np.ndarray:
    """Where a frame (h, w, 3) is as a still one, levels of 0 to 255: shares (h, w), 0 where it has moved."""
    change = np.abs(frame.astype(np.float32) - still).max(axis=-1)
    change = cv2.GaussianBlur(cv2.dilate(change, np.ones((3, 3))), (0, 0), 1.5)
    return np.clip((MOVED - change) / (MOVED - STILL), 0, 1)


def find_closeup(picture: np.ndarray, face_share: float, face_index: int = 0) -> CloseUp | None:
    """The square of the picture (h, w, 3) uint8 in which a face has `face_share` of the height, in its place.

    The whole of a square picture whose face is about there; None without a face that is surely one.
    """
    height, width = picture.shape[:2]
    short = min(height, width)
    faces = detect_faces(picture)
    if not faces:
        return None
    face = choose_face(faces, face_index)
    if face.score < SURE_SCORE:
        return None
    x0, y0, x1, y1 = face.box
    tall = (y1 - y0) / face_share  # the side of the square in which the face has its usual size
    mouth = (x0 + x1) / 2, (y0 + y1) / 2 + MOUTH * (y1 - y0)
    astray = [abs(at / short - place) for at, place in zip(mouth, MOUTH_PLACE, strict=True)]
    low, high = AS_LARGE
    if height == width and low <= tall / short <= high and all(np.less_equal(astray, ASTRAY)):
        return replace(square_of(height, width), face=face.box)
    size = round(tall)
    left, top = (round(at - place * size) for at, place in zip(mouth, MOUTH_PLACE, strict=True))
    return replace(square_of(height, width), left=left, top=top, side=size, face=face.box)


def square_of(height: int, width: int) -> CloseUp:
    """The largest square of a picture: in its middle across, and at its foot, where a bust ends."""
    side = min(height, width)
    return CloseUp(
        height=height,
        width=width,
        left=(width - side) // 2,
        top=height - side,
        side=side,
        scale=1.0,
        out_height=height,
        out_width=width,
    )


def size_to_look(height: int, width: int) -> tuple[int, int]:
    """The size, of even sides, at which a video's pictures are looked at for their faces."""
    return _even(height, width, min(1.0, LONGEST / max(height, width)))


def _even(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))
