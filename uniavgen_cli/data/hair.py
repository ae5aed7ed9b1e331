"""Paint hair: the part in front of the head and the part behind it."""

from __future__ import annotations

import cv2
import numpy as np

from uniavgen_cli.data.colour import shade
from uniavgen_cli.data.drawing import Paper, Sprite, mirrored, smooth
from uniavgen_cli.data.identity import Identity

# The hair's lower edge in face units, right to left.
# fmt: off
_HAIRLINES = {
    "none": [(0.9, -0.1), (0.84, -0.48), (0.6, -0.72), (0.3, -0.82), (0, -0.85), (-0.3, -0.82),
             (-0.6, -0.72), (-0.84, -0.48), (-0.9, -0.1)],
    "straight": [(0.9, 0.0), (0.82, -0.3), (0.74, -0.46), (0.4, -0.44), (0, -0.43), (-0.4, -0.44),
                 (-0.74, -0.46), (-0.82, -0.3), (-0.9, 0.0)],
    "side": [(0.9, -0.05), (0.86, -0.3), (0.72, -0.44), (0.4, -0.55), (0.05, -0.72), (-0.3, -0.92),
             (-0.6, -0.7), (-0.84, -0.4), (-0.9, -0.05)],
    "parted": [(0.92, 0.0), (0.8, -0.28), (0.6, -0.5), (0.32, -0.72), (0.03, -0.96), (-0.03, -0.96),
               (-0.32, -0.72), (-0.6, -0.5), (-0.8, -0.28), (-0.92, 0.0)],
    "choppy": [(0.9, -0.05), (0.82, -0.42), (0.62, -0.5), (0.52, -0.66), (0.3, -0.5), (0.2, -0.68),
               (-0.04, -0.52), (-0.16, -0.68), (-0.4, -0.52), (-0.54, -0.68), (-0.66, -0.5), (-0.82, -0.42),
               (-0.9, -0.05)],
}
# fmt: on
# How far down the sides the front hair reaches.
_SIDES = {
    "short": 0.02,
    "bob": 0.5,
    "long": 0.45,
    "wavy": 0.45,
    "curly": 0.2,
    "bun": -0.02,
    "ponytail": -0.02,
}


def _wobble(outline: np.ndarray, size: float, waves: float, phase: float) -> np.ndarray:
    """Push an outline in and out around its middle, for curls and waves."""
    middle = outline.mean(0)
    spoke = outline - middle
    angle = np.arctan2(spoke[:, 1], spoke[:, 0])
    return middle + spoke * (1 + size * np.abs(np.sin(angle * waves + phase)))[:, None]


def _strands(paper: Paper, mask: np.ndarray, who: Identity, rng: np.random.Generator, straight: bool) -> None:
    """Texture hair inside mask: strands from the crown, or curls."""
    gx, gy = paper.grid()
    if straight:
        part = {"side": -0.3, "parted": 0.0}.get(who.fringe, 0.12 * who.light)
        noise = cv2.resize(
            rng.normal(0, 1, (1, 72)).astype(np.float32), (512, 1), interpolation=cv2.INTER_CUBIC
        )[0]
        fine = rng.normal(0, 1, 512).astype(np.float32)
        # strands fan out from the crown above and fall straight below the temples
        fan = np.where(
            gy < -0.3, (gx - part) / np.maximum(0.55 + 0.55 * (gy + 1.45), 0.12), (gx - part) / 1.18
        )
        index = np.clip((fan * 0.2 + 0.5) * 511, 0, 511).astype(np.int32)
        streak = noise[index] * 0.5 + fine[index] * 0.25
    else:
        low = rng.normal(0, 1, (34, 34)).astype(np.float32)
        streak = cv2.resize(low, paper.size[::-1], interpolation=cv2.INTER_CUBIC) * 0.6
    paper.tint(np.clip(streak, 0, 1) * mask, shade(who.hair, 1.28), 0.45)
    paper.tint(np.clip(-streak, 0, 1) * mask, shade(who.hair, 0.55), 0.5)
    radius = np.hypot((gx - 0.12 * who.light) / 1.0, (gy + 0.1) / 1.05)
    band = (
        np.exp(-(((radius - 0.88) / 0.1) ** 2))
        * np.exp(-(((gx - 0.28 * who.light) / 0.5) ** 2))
        * (gy < -0.3)
    )
    paper.tint(band * mask * np.clip(0.65 + 0.6 * streak, 0, 1.3), shade(who.hair, 1.6), 0.6)
    edge = np.clip(mask - paper.soften(mask, 0.09), 0, 1)
    paper.tint(edge * mask, shade(who.hair, 0.45), 0.8 if straight else 0.0)


def paint_fringe(who: Identity, scale: float, rng: np.random.Generator) -> Sprite | None:
    """The hair in front of the head; nothing for a bald one."""
    if who.hair_style == "bald":
        return None
    paper = Paper((-1.75, -2.0, 1.75, 1.0), scale)
    w, volume, low = who.face_width, who.hair_volume, _SIDES[who.hair_style]
    angle = np.linspace(np.pi, 2 * np.pi, 90)
    width = w + 0.05 + volume * 0.6
    outer = np.stack([width * np.cos(angle), -0.3 + (1.1 + volume) * np.sin(angle)], 1)
    curly = who.hair_style == "curly"
    if curly:
        outer = outer * (1 + 0.045 * np.abs(np.sin(angle * 8)))[:, None]
    lift = 0.22 if who.hair_style in ("short", "bun", "ponytail", "curly") else low * 0.4  # the tips taper
    sides_r = np.array([(0.97 * w, low), (width * 0.985, low - lift)])
    hairline = np.array(_HAIRLINES[who.fringe]) * (w / 0.98 * who.fringe_flip, 1)
    if who.fringe_flip < 0:
        hairline = hairline[::-1]
    inner = smooth(hairline, closed=False) if who.fringe != "choppy" else hairline
    shape = np.concatenate([outer, sides_r[::-1], inner, sides_r * (-1, 1)])
    mask = paper.area(shape, 0.025 if curly else 0.006)
    paper.paint(mask, who.hair)
    _strands(paper, mask, who, rng, not curly)
    return paper.sprite()


def paint_back_hair(who: Identity, scale: float, rng: np.random.Generator) -> Sprite | None:
    """The hair behind head and neck; nothing for bald and short styles."""
    if who.hair_style in ("bald", "short"):
        return None
    paper = Paper((-2.0, -2.35, 2.0, 3.2), scale)
    w, v, end = who.face_width, who.hair_volume, who.hair_length
    colour = shade(who.hair, 0.82 if who.hair_style == "curly" else 0.66)
    wide = w + 0.05 + v * 0.6
    if who.hair_style in ("bun", "ponytail"):
        top, side = (0, -1.3 - v), (0.7 * wide, -1.1 - v * 0.6)
        cap = mirrored([top, side, (wide, -0.5), (0.97 * wide, 0.1), (0.8 * w, 0.3)])
        paper.paint(paper.area(smooth(cap)), colour)
        if who.hair_style == "bun":
            ball = paper.oval(0, -1.45 - v, 0.36 + 0.3 * v, 0.34 + 0.2 * v)
            paper.paint(ball, who.hair)
            gx, gy = paper.grid()
            paper.tint(ball * np.clip((gy + 1.4 + v) / 0.3, 0, 1), shade(who.hair, 0.5), 0.6)
            swirl = 0.5 + 0.5 * np.sin(np.hypot(gx - 0.1, gy + 1.6 + v) * 60)
            paper.tint(ball * swirl, shade(who.hair, 1.25), 0.22)
            paper.tint(paper.glow(0.1 * who.light, -1.6 - v, 0.16, 0.1) * ball, shade(who.hair, 1.6), 0.5)
        else:
            f = who.fringe_flip
            tail = np.array(
                [(0.4, -1.25), (0.95, -1.2), (1.35, -0.6), (1.38, 0.3), (1.25, 1.0), (1.0, 0.5), (0.98, -0.3)]
            )
            mask = paper.area(smooth(tail) * (f * w / 0.85, 1))
            paper.paint(mask, shade(who.hair, 0.85))
            _strands(paper, mask, who, rng, True)
        return paper.sprite()
    if who.hair_style == "curly":
        ring = np.linspace(0, 2 * np.pi, 200, endpoint=False)
        below = np.where(np.sin(ring) > 0, end, 1)
        shape = np.stack([(wide + 0.12 + v) * np.cos(ring), -0.35 + (1.1 + v) * np.sin(ring) * below], 1)
        shape = _wobble(shape, 0.06, 11, float(rng.uniform(0, 3)))
    else:
        flare = 1.12 if who.hair_style != "bob" else 1.06
        crown = [(0, -1.36 - v), (0.75 * wide, -1.12 - v * 0.6), (1.02 * wide, -0.4), (1.06 * wide, 0.3)]
        ends = [(flare * wide, 0.75 * end), (flare * wide, 0.97 * end), (0.9 * wide, end), (0, 1.01 * end)]
        shape = smooth(mirrored(crown + ends), 24)
        if who.hair_style == "wavy":
            shape[:, 0] *= 1 + 0.055 * np.sin(shape[:, 1] * 8.5 + np.sign(shape[:, 0])) * (shape[:, 1] > -0.9)
    mask = paper.area(shape)
    paper.paint(mask, colour)
    gx, gy = paper.grid()
    _strands(paper, mask, who, rng, who.hair_style != "curly")
    paper.tint(paper.glow(0, 0.7, 0.75 * w, 0.7) * mask, shade(who.hair, 0.35), 0.65)
    return paper.sprite()
