"""The parts of a face that change shape: mouth, eyes and brows as polygons for every frame, in face units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from uniavgen_cli.data.colour import Colour, mix, shade
from uniavgen_cli.data.identity import Identity
from uniavgen_cli.data.motion import Motion


@dataclass(frozen=True)
class Expression:
    """One emotion's effect at full strength; heights in face units, lids as a share of the eye's height."""

    smile: float = 0.0
    brow_inner: float = 0.0  # up is positive
    brow_outer: float = 0.0
    lid: float = 0.0  # wider open is positive
    squint: float = 0.0  # lower lid up
    jaw: float = 0.0
    sneer: float = 0.0


EXPRESSIONS = {
    "neutral": Expression(),
    "happy": Expression(smile=1.0, brow_inner=0.025, brow_outer=0.035, lid=-0.05, squint=0.45),
    "sad": Expression(smile=-0.75, brow_inner=0.10, brow_outer=-0.05, lid=-0.3),
    "angry": Expression(smile=-0.45, brow_inner=-0.11, brow_outer=0.05, lid=-0.12, squint=0.3),
    "surprised": Expression(smile=0.05, brow_inner=0.12, brow_outer=0.13, lid=0.4, jaw=0.10),
    "afraid": Expression(smile=-0.4, brow_inner=0.13, brow_outer=0.03, lid=0.3, jaw=0.03),
    "disgusted": Expression(smile=-0.55, brow_inner=-0.06, brow_outer=0.0, lid=-0.25, squint=0.55, sneer=1.0),
}


@dataclass(frozen=True)
class Shape:
    """A polygon or line for every frame: points (n, k, 2) in face units, all at one depth."""

    points: np.ndarray
    depth: float
    colour: Colour
    thickness: float = 0.0  # face units; 0 fills


_T = np.sin(np.linspace(-np.pi / 2, np.pi / 2, 17))  # across a mouth, eye or brow, denser at the corners


def mouth_shapes(
    who: Identity, face: Expression, strength: float, mouth: np.ndarray
) -> tuple[list[Shape], np.ndarray, np.ndarray]:
    """Lips, teeth and tongue for every frame, the gap (n,) and the bounds (n, 4) x0 y0 x1 y1; face units."""
    opened, wide, rounded, teeth, tongue, tuck, press = (mouth[:, i : i + 1] for i in range(7))
    smile, sneer = 0.1 + face.smile * strength, face.sneer * strength
    free = 1 - press
    jaw = np.clip(opened + face.jaw * strength, 0, 1)
    gap = (
        0.42 * jaw**0.9 + np.maximum(0.075 * np.maximum(teeth, 0.6 * tongue), 0.06 * rounded) * (1 - jaw)
    ) * free
    gap = gap * (1 - 0.8 * tuck) + 0.055 * tuck * free
    spread = 0.24 * wide + 0.13 * max(smile, 0) - 0.36 * rounded + 0.05 * press - 0.12 * jaw * (1 - wide)
    half = who.mouth_width * (1 + spread)
    arch = (1 - _T**2)[None]
    bow = np.abs(_T)[None] ** 2.2
    base = who.mouth_y - 0.11 * smile * bow + 0.035 * smile  # corners lift with a smile
    fill = np.clip(arch, 0, 1) ** (0.54 - 0.08 * rounded)
    top = base - 0.24 * gap * fill - sneer * 0.035 * arch
    fill_below = np.clip(arch, 0, 1) ** (0.54 - 0.16 * np.maximum(jaw, rounded))
    bottom = np.maximum(base + 0.76 * gap * fill_below, top)
    inner_x = (half - 0.012) * _T
    pucker = (1 + 0.3 * rounded) * (1 - 0.6 * press)
    cupid = arch**0.7 * (1 - 0.3 * np.exp(-((_T / 0.2) ** 2)))[None]
    upper = top - who.lip_upper * pucker * cupid - 0.006
    lower = bottom + who.lip_lower * pucker * (1 - 0.65 * tuck) * arch ** (0.58 - 0.14 * jaw) + 0.006
    outer_x = (half + 0.012) * _T

    lip, deep = who.lip_rgb, (58, 14, 18)
    upper_teeth = (0.045 + 0.07 * np.maximum(teeth, tuck)) * (1 - 0.75 * rounded)
    tooth_end = np.minimum(top + upper_teeth * arch**0.4, bottom)
    lower_teeth = 0.05 * np.clip(teeth * 1.2 - 0.3, 0, 1) * (1 - jaw) * (1 - rounded)
    low_teeth = np.maximum(bottom - lower_teeth * arch**0.5, tooth_end)
    flesh_height = 0.22 * gap * (0.7 + 0.3 * arch) * (1 - rounded) + 0.13 * tongue * np.minimum(gap * 8, 1)
    flesh = np.maximum(bottom - flesh_height * arch**0.5, top + 0.25 * (bottom - top))
    tooth_x, flesh_x = inner_x * 0.9, inner_x * (0.72 + 0.1 * tongue)

    def at(y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """Heights y, given along inner_x, at the narrower x."""
        share = np.clip(np.abs(x[:, -1:] / inner_x[:, -1:]), 0, 1)
        place = (np.arcsin(share * _T) * 2 / np.pi + 1) * (len(_T) - 1) / 2
        left = np.clip(np.floor(place).astype(int), 0, len(_T) - 2)
        rest = place - left
        rows = np.arange(len(y))[:, None]
        return y[rows, left] * (1 - rest) + y[rows, left + 1] * rest

    shapes = [
        Shape(_strip(outer_x, upper, outer_x, base), 0.75, shade(lip, 0.86)),
        Shape(_strip(outer_x, base, outer_x, lower), 0.75, shade(lip, 1.05)),
        Shape(_strip(outer_x, upper, inner_x, top), 0.75, shade(lip, 0.86)),
        Shape(_strip(inner_x, bottom, outer_x, lower), 0.75, shade(lip, 1.05)),
        Shape(_strip(inner_x, top, inner_x, bottom), 0.72, deep),
        Shape(_strip(flesh_x, at(flesh, flesh_x), flesh_x, at(bottom, flesh_x)), 0.72, (196, 82, 84)),
        Shape(_strip(tooth_x, at(top, tooth_x), tooth_x, at(tooth_end, tooth_x)), 0.72, (248, 246, 240)),
        Shape(_strip(tooth_x, at(low_teeth, tooth_x), tooth_x, at(bottom, tooth_x)), 0.72, (232, 228, 220)),
        Shape(np.stack([inner_x, top], -1), 0.75, shade(lip, 0.5), 0.02),
    ]
    if who.beard in ("none", "moustache"):  # the hollow under the lip
        hollow = lower.max(1, keepdims=True) + 0.045 - 0.02 * _T**2
        crescent = _strip(outer_x * 0.5, hollow, outer_x * 0.5, hollow + 0.03 * arch)
        shapes.insert(0, Shape(crescent, 0.72, shade(who.skin, 0.88)))
    gleam = 0.5 * outer_x
    gleam_y = at(bottom, gleam) + 0.42 * (at(lower, gleam) - at(bottom, gleam))
    shapes.append(Shape(np.stack([gleam, gleam_y], -1), 0.76, shade(lip, 1.28), 0.022))
    bounds = np.stack([-outer_x[:, -1], upper.min(1), outer_x[:, -1], lower.max(1)], 1)
    return shapes, (bottom - top).max(1), bounds


def eye_shapes(who: Identity, face: Expression, motion: Motion) -> list[Shape]:
    """Eyes and brows for every frame."""
    n, strength = len(motion.yaw), motion.intensity
    shapes: list[Shape] = []
    lid = (np.clip(1 + face.lid * strength, 0.3, 1.5) * (1 - motion.blink))[:, None]
    squint = np.clip(face.squint * strength + 0.3 * motion.blink, 0, 1)[:, None]
    angle = np.linspace(0, 2 * np.pi, 22, endpoint=False)[None]
    width, height = who.eye_width, who.eye_height
    for side in (-1, 1):
        cx, cy = side * who.eye_gap, -0.1
        t = _T[None]

        def rim(t: np.ndarray, side: int = side, cy: float = cy) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            """Upper lid, lower lid and crease at t in -1..1 across the eye."""
            arch = np.clip(1 - t**2, 0, 1)
            slope = -who.eye_tilt * t * side
            low = cy + slope + 0.62 * height * arch**0.8 * (1 - 0.6 * squint)
            high = cy + slope - height * arch**0.62
            return low + (high - low) * np.minimum(lid, 1.35), low, high - 0.045 * arch**0.5

        upper, lower, crease = (np.broadcast_to(a, (n, len(_T))) for a in rim(t))
        x = np.broadcast_to(cx + width * t, (n, len(_T)))
        look = cx + motion.gaze[:, :1] * 0.352 * width
        iris_y = cy - 0.012 - motion.gaze[:, 1:] * 0.05
        skin_lid = shade(mix(who.skin, (120, 40, 30), 0.12), 0.8)
        if who.eyeshadow is not None:
            skin_lid = mix(who.skin, who.eyeshadow, 0.8)
        shapes.append(Shape(_strip(x, np.minimum(crease, upper), x, lower), 0.6, skin_lid))
        shapes.append(Shape(_strip(x, upper, x, lower), 0.6, (246, 244, 242)))
        iris = ((0.098, shade(who.eye_rgb, 0.55)), (0.082, shade(who.eye_rgb, 1.1)), (0.042, (14, 12, 14)))
        for radius, colour in iris:
            px, py = look + radius * np.cos(angle), iris_y + radius * np.sin(angle)
            high, low, _ = rim(np.clip((px - cx) / width, -1, 1))
            shapes.append(Shape(np.stack([px, np.clip(py, high, low)], -1), 0.6, colour))
        px, py = look + 0.03 + 0.024 * np.cos(angle), iris_y - 0.03 + 0.024 * np.sin(angle)
        high, low, _ = rim(np.clip((px - cx) / width, -1, 1))
        shapes.append(Shape(np.stack([px, np.clip(py, high, low)], -1), 0.6, (255, 255, 255)))
        shapes.append(
            Shape(np.stack([x, lower], -1), 0.6, shade(mix(who.skin, (120, 40, 30), 0.2), 0.66), 0.012)
        )
        shapes.append(Shape(np.stack([x, upper], -1), 0.6, (30, 20, 20), who.lashes))
        if who.gender == "woman":
            corner = cx + side * width
            tip = upper[:, -1] if side > 0 else upper[:, 0]
            reach = corner + side * np.array([-0.03, 0.035, 0.0])
            wing = np.stack(np.broadcast_arrays(reach, tip[:, None] + [-0.025, -0.04, 0.012]), -1)
            shapes.append(Shape(wing, 0.58, (30, 20, 20)))
        s = (_T[None] + 1) / 2  # 0 at the nose, 1 at the temple
        lift = (
            face.brow_inner * strength * (1 - s) ** 1.3
            + face.brow_outer * strength * s
            + motion.brow[:, None]
        )
        brow_y = who.brow_height - lift - who.brow_arch * np.sin(np.pi * s**1.2) + 0.03 * s**3
        thick = who.brow_width * (0.45 + 0.9 * np.sqrt(s) - 1.2 * s**2.5)
        inset = 0.02 * max(-face.brow_inner * 10, 0) * strength
        brow_x = np.broadcast_to(side * (0.155 - inset + (0.44 + inset) * s), brow_y.shape)
        shapes.append(
            Shape(_strip(brow_x, brow_y - thick * 0.6, brow_x, brow_y + thick * 0.5), 0.66, who.brow_rgb)
        )
    return shapes


def _strip(x1: np.ndarray, y1: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> np.ndarray:
    """The closed band (n, 2k, 2) between two lines of k points a frame."""
    y1, y2 = np.broadcast_arrays(y1, y2)
    return np.stack([np.concatenate([x1, x2[:, ::-1]], 1), np.concatenate([y1, y2[:, ::-1]], 1)], -1)
