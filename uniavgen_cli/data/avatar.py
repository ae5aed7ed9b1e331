"""Drawn avatars: who they are, how they move, and the frames that show them speaking.

A face is drawn in face units: the origin between the cheeks, x right, y down, forehead at -1 and chin at 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from uniavgen_cli.data import drawing, hair
from uniavgen_cli.data.drawing import JAW_LINE, Sprite
from uniavgen_cli.data.expression import EXPRESSIONS, eye_shapes, mouth_shapes
from uniavgen_cli.data.identity import Identity, sample_identity
from uniavgen_cli.data.motion import Motion, sample_motion

__all__ = [
    "EMOTIONS",
    "MOUTH_PARAMETERS",
    "Identity",
    "Motion",
    "Rendered",
    "render",
    "sample_identity",
    "sample_motion",
]

EMOTIONS = ("neutral", "happy", "sad", "angry", "surprised", "afraid", "disgusted")
MOUTH_PARAMETERS = ("open", "wide", "round", "teeth", "tongue", "tuck", "press")


@dataclass(frozen=True)
class Rendered:
    """Frames and the truth about them; boxes (n, 4) are x0 y0 x1 y1 in pixels, past the frame if need be."""

    frames: np.ndarray  # (n, height, width, 3) uint8 RGB
    face_boxes: np.ndarray  # forehead to chin, cheek to cheek
    mouth_boxes: np.ndarray  # the lips with a margin
    opening: np.ndarray  # (n,), the visible gap between the lips as a share of the face's height


class _Pose:
    """Where face units fall in the picture, frame by frame: a turn about the neck, then place and scale."""

    def __init__(self, motion: Motion, scale: float, centre: tuple[float, float]) -> None:
        self.scale, self.centre = scale, np.array(centre)
        self.yaw, self.pitch, self.sway = motion.yaw, motion.pitch, motion.sway
        cos, sin = np.cos(motion.roll), np.sin(motion.roll)
        self.turn = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)  # (n, 2, 2)
        self.pivot = np.array([0.0, 1.1])

    def offset(self, depth: np.ndarray | float) -> np.ndarray:
        """Shift (n, ..., 2) of what lies at a depth, towards the viewer positive."""
        yaw, pitch = self.yaw, self.pitch
        if isinstance(depth, np.ndarray):
            yaw, pitch = yaw[:, None], pitch[:, None]
        return np.stack(np.broadcast_arrays(depth * np.sin(yaw), -depth * np.sin(pitch)), -1)

    def points(self, points: np.ndarray, depth: float) -> np.ndarray:
        """Face units (n, k, 2) at a depth -> pixels (n, k, 2); the face curves back towards its sides."""
        bulge = depth * np.sqrt(np.clip(1 - (points[..., 0] / 1.1) ** 2, 0.05, 1))
        flat = points * np.stack([np.cos(self.yaw), np.cos(self.pitch)], -1)[:, None] + self.offset(bulge)
        turned = np.einsum("nij,nkj->nki", self.turn, flat - self.pivot) + self.pivot + self.sway[:, None]
        return turned * self.scale + self.centre

    def affine(
        self, depth: float, shear: np.ndarray | None = None, stretch: np.ndarray | None = None
    ) -> np.ndarray:
        """Face units at one depth -> pixels, as (n, 2, 3); shear and stretch act below the jaw line."""
        n = len(self.yaw)
        local = np.zeros((n, 2, 2))
        local[:, 0, 0], local[:, 1, 1] = np.cos(self.yaw), np.cos(self.pitch)
        move = self.offset(depth)
        if shear is not None and stretch is not None:
            jaw = np.zeros((n, 2, 2))
            jaw[:, 0, 0], jaw[:, 0, 1], jaw[:, 1, 1] = 1, shear, 1 + stretch
            back = np.stack([-shear * JAW_LINE, -stretch * JAW_LINE], -1)
            move = move + np.einsum("nij,nj->ni", local, back)
            local = local @ jaw
        matrix = self.turn @ local * self.scale
        turned = np.einsum("nij,nj->ni", self.turn, move - self.pivot) + self.pivot + self.sway
        shift = turned * self.scale + self.centre
        return np.concatenate([matrix, shift[..., None]], -1)


def _lay(picture: np.ndarray, sprite: Sprite, matrix: np.ndarray) -> None:
    """Draw a sprite over the picture (h, w, 3) through a (2, 3) matrix from face units to pixels."""
    h, w = sprite.pixels.shape[:2]
    whole = np.empty((2, 3))
    whole[:, :2] = matrix[:, :2] / sprite.scale
    whole[:, 2] = matrix[:, :2] @ sprite.origin + matrix[:, 2]
    corners = whole[:, :2] @ np.array([[0, w, 0, w], [0, 0, h, h]]) + whole[:, 2:]
    x0, y0 = np.maximum(np.floor(corners.min(1)).astype(int), 0)
    x1, y1 = np.minimum(np.ceil(corners.max(1)).astype(int) + 1, (picture.shape[1], picture.shape[0]))
    if x1 <= x0 or y1 <= y0:
        return
    whole[:, 2] -= (x0, y0)
    moved = cv2.warpAffine(sprite.pixels, whole, (int(x1 - x0), int(y1 - y0)), flags=cv2.INTER_LINEAR)
    _cover(picture[y0:y1, x0:x1], moved)


def _cover(picture: np.ndarray, over: np.ndarray) -> None:
    """Lay premultiplied RGBA pixels over a picture of the same size."""
    clear = cv2.cvtColor(255 - over[..., 3], cv2.COLOR_GRAY2RGB)
    cv2.add(cv2.multiply(picture, clear, scale=1 / 255), cv2.cvtColor(over, cv2.COLOR_RGBA2RGB), dst=picture)


@dataclass(frozen=True)
class _Puppet:
    """The still parts of one avatar for one frame size; None where it has no such part."""

    wall: np.ndarray  # (2 * height, 2 * width, 3) uint8
    torso: np.ndarray  # premultiplied RGBA, lies at `torso_place` of the wall
    torso_place: tuple[slice, slice]
    hair_behind: Sprite | None
    skull: Sprite
    jaw: Sprite
    features: Sprite
    tuft: Sprite | None
    fringe: Sprite | None
    glasses: Sprite | None


def _puppet(who: Identity, height: int, width: int, scale: float, centre: tuple[float, float]) -> _Puppet:
    # a generator a part: the same person at another size keeps the same freckles and strands
    wall_rng, head_rng, feature_rng, tuft_rng, fringe_rng, back_rng = np.random.default_rng(who.seed).spawn(6)
    x, y = centre
    sheet = drawing.Paper((-x / scale, -y / scale, (width - x) / scale, (height - y) / scale), scale)
    drawing.paint_body(who, sheet)
    body = sheet.sprite()
    left, top = (int(round(o * scale + c)) for o, c in zip(body.origin, centre, strict=True))
    torso = body.pixels[: height - top, : width - left]
    place = (slice(top, top + torso.shape[0]), slice(left, left + torso.shape[1]))
    skull, jaw = drawing.paint_head(who, scale, head_rng)
    return _Puppet(
        wall=drawing.paint_background(who, height, width, wall_rng),
        torso=torso,
        torso_place=place,
        hair_behind=hair.paint_back_hair(who, scale, back_rng),
        skull=skull,
        jaw=jaw,
        features=drawing.paint_features(who, scale, feature_rng),
        tuft=drawing.paint_tuft(who, scale, tuft_rng),
        fringe=hair.paint_fringe(who, scale, fringe_rng),
        glasses=drawing.paint_glasses(who, scale),
    )


def render(
    identity: Identity, emotion: str, mouth: np.ndarray, motion: Motion, height: int = 128, width: int = 128
) -> Rendered:
    """Draw an avatar speaking: mouth (n, 7) in 0..1 in the order of MOUTH_PARAMETERS, one row a frame.

    Raises ValueError when mouth and motion differ in their number of frames or the emotion is unknown.
    """
    n = len(mouth)
    if mouth.shape != (n, len(MOUTH_PARAMETERS)) or len(motion.yaw) != n:
        raise ValueError(
            f"mouth {mouth.shape} does not fit {len(motion.yaw)} frames of {len(MOUTH_PARAMETERS)} parameters"
        )
    if emotion not in EMOTIONS:
        raise ValueError(f"unknown emotion {emotion!r}: choose one of {', '.join(EMOTIONS)}")
    who, face = identity, EXPRESSIONS[emotion]
    tall, broad = 2 * height, 2 * width  # drawn at twice the size, then halved
    short = min(tall, broad)
    scale = 0.25 * short * who.scale
    centre = (broad * (0.5 + who.position[0]), tall * 0.5 + (who.position[1] - 0.5) * short)
    puppet, pose = _puppet(who, tall, broad, scale, centre), _Pose(motion, scale, centre)

    lips, gap, bounds = mouth_shapes(who, face, motion.intensity, np.clip(mouth.astype(np.float64), 0, 1))
    drop = 0.5 * gap  # of the chin
    swing, stretch = 0.4 * np.sin(motion.yaw), drop / (1 - JAW_LINE)
    shapes = [
        (shape, np.round(pose.points(shape.points, shape.depth) * 16).astype(np.int32))
        for shape in eye_shapes(who, face, motion) + lips
    ]
    at_face = pose.affine(0.7)
    under = [
        (puppet.skull, pose.affine(0.0)),
        (puppet.jaw, pose.affine(0.0, swing, stretch)),
        (puppet.features, at_face),
    ]
    if puppet.tuft is not None:
        under.append((puppet.tuft, pose.affine(0.38, swing, stretch) if who.beard == "goatee" else at_face))
    over = [
        (sprite, pose.affine(depth))
        for sprite, depth in ((puppet.fringe, 0.25), (puppet.glasses, 0.66))
        if sprite
    ]
    at_back = pose.affine(-0.45)

    frames = np.empty((n, height, width, 3), np.uint8)
    for i in range(n):
        picture = puppet.wall.copy()
        if puppet.hair_behind is not None:
            _lay(picture, puppet.hair_behind, at_back[i])
        _cover(picture[puppet.torso_place], puppet.torso)
        for sprite, place in under:
            _lay(picture, sprite, place[i])
        for shape, points in shapes:
            if shape.thickness:
                thick = max(int(round(shape.thickness * scale)), 1)
                cv2.polylines(picture, [points[i]], False, shape.colour, thick, cv2.LINE_AA, 4)
            else:
                cv2.fillPoly(picture, [points[i]], shape.colour, cv2.LINE_AA, 4)
        for sprite, place in over:
            _lay(picture, sprite, place[i])
        frames[i] = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return Rendered(frames, _face_boxes(who, pose, drop), _mouth_boxes(pose, bounds), gap / 2)


def _mouth_boxes(pose: _Pose, bounds: np.ndarray) -> np.ndarray:
    """Boxes (n, 4) in output pixels around the lips' bounds (n, 4) in face units."""
    margin = 0.08
    x0, y0, x1, y1 = (bounds + np.array([-margin, -margin, margin, margin])).T
    corners = np.stack([np.stack([x, y], -1) for x in (x0, x1) for y in (y0, y1)], 1)
    placed = pose.points(corners, 0.72) / 2
    return np.concatenate([placed.min(1), placed.max(1)], -1).astype(np.float32)


def _face_boxes(who: Identity, pose: _Pose, drop: np.ndarray) -> np.ndarray:
    n, w = len(drop), who.face_width
    spots = np.zeros((n, 4, 2))
    spots[:, 0], spots[:, 1], spots[:, 2] = (0, -1), (-w, 0), (w, 0)
    spots[:, 3, 1] = 1 + drop
    placed = pose.points(spots, 0.0) / 2
    return np.concatenate([placed.min(1), placed.max(1)], -1).astype(np.float32)
