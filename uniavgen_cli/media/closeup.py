"""A small face in a large picture: the model sees the face from near, and what it makes is laid back."""

from dataclasses import dataclass

import numpy as np

from uniavgen_cli.media.face import choose_face, detect_faces
from uniavgen_cli.media.image import resized

FACE_SHARE = 0.5  # of the close-up's side that the face's height takes, as it does where nano learnt
SURE_SCORE = 0.7  # of the face: what is less may be a leaf, and is not worth leaving the picture for
SEAM = 0.1  # of the side over which the close-up goes over into the picture around it
LONGEST = 1024  # pixels of the written picture's long side


@dataclass(frozen=True, kw_only=True)
class CloseUp:
    """A square of a picture by its corner and side in pixels, and the picture to write, `scale` as large."""

    left: int
    top: int
    side: int
    scale: float
    out_height: int
    out_width: int

    def cut(self, picture: np.ndarray, side: int) -> np.ndarray:
        """The close-up (side, side, 3) of the picture (h, w, 3) uint8."""
        part = picture[self.top : self.top + self.side, self.left : self.left + self.side]
        return resized(part, side, side)

    def around(self, picture: np.ndarray) -> np.ndarray:
        """The picture (h, w, 3) uint8 as it is written, (out_height, out_width, 3)."""
        return resized(picture, self.out_height, self.out_width)

    def laid(self, frames: np.ndarray, around: np.ndarray) -> np.ndarray:
        """Close-ups (n, s, s, 3) uint8 in their place in what is `around` them, n pictures of its size."""
        left, top, side = (round(pixels * self.scale) for pixels in (self.left, self.top, self.side))
        side = min(side, self.out_height - top, self.out_width - left)
        share = self._shares(side, left, top)
        place = around[top : top + side, left : left + side].astype(np.float32)
        laid = np.repeat(around[None], len(frames), axis=0)
        for frame, whole in zip(frames, laid, strict=True):
            near = resized(frame, side, side).astype(np.float32)
            whole[top : top + side, left : left + side] = np.rint(place + share * (near - place))
        return laid

    def _shares(self, side: int, left: int, top: int) -> np.ndarray:
        """How much the close-up counts (side, side, 1): less where the picture goes on beyond its edge."""
        rise = np.clip((np.arange(side) + 0.5) / (SEAM * side), 0, 1).astype(np.float32)
        ones = np.ones(side, np.float32)
        across = (rise if left > 0 else ones) * (rise[::-1] if left + side < self.out_width else ones)
        down = (rise if top > 0 else ones) * (rise[::-1] if top + side < self.out_height else ones)
        return np.outer(down, across)[:, :, None]


def find_closeup(picture: np.ndarray, least_share: float, side: int, face_index: int = 0) -> CloseUp | None:
    """The close-up of a face lower than `least_share` of the short side of the picture (h, w, 3) uint8.

    None where it is not as small as that, and without a face that is surely one. The written picture is as
    large as leaves the close-up at `side` pixels, but no larger than the picture, nor than 1024 pixels.
    """
    height, width = picture.shape[:2]
    faces = detect_faces(picture)
    if not faces:
        return None
    face = choose_face(faces, face_index)
    x0, y0, x1, y1 = face.box
    if face.score < SURE_SCORE or y1 - y0 >= least_share * min(height, width):
        return None
    size = min(round((y1 - y0) / FACE_SHARE), height, width)
    left = round(np.clip((x0 + x1 - size) / 2, 0, width - size))
    top = round(np.clip((y0 + y1 - size) / 2, 0, height - size))
    scale = min(side / size, 1.0, LONGEST / max(height, width))
    out_height, out_width = (max(2, 2 * round(length * scale / 2)) for length in (height, width))
    return CloseUp(left=left, top=top, side=size, scale=scale, out_height=out_height, out_width=out_width)
