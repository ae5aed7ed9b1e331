"""Paint the still parts of an avatar: soft-edged sprites of head, body and glasses, and the background."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from uniavgen_cli.data.colour import Colour, mix, shade
from uniavgen_cli.data.identity import Identity

_SHIFT = 4  # OpenCV draws polygons at 1/16 of a pixel


def smooth(points: np.ndarray, steps: int = 8, closed: bool = True) -> np.ndarray:
    """Run a Catmull-Rom curve through points (k, 2); (k * steps, 2) when closed."""
    p = np.asarray(points, np.float64)
    padded = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([p[:1], p, p[-1:]])
    a, b, c, d = padded[:-3, None], padded[1:-2, None], padded[2:-1, None], padded[3:, None]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    flat = curve.reshape(-1, 2)
    return flat if closed else np.concatenate([flat, p[-1:]])


def mirrored(points: list[tuple[float, float]]) -> np.ndarray:
    """Close a right-hand outline (top to bottom) with its mirror image."""
    right = np.array(points, np.float64)
    left = right[::-1] * (-1, 1)
    keep = np.abs(left[:, 0]) > 1e-6
    return np.concatenate([right, left[keep]])


@dataclass(frozen=True)
class Sprite:
    """A still picture: premultiplied RGBA uint8 pixels, whose corner lies at `origin` in face units."""

    pixels: np.ndarray
    origin: tuple[float, float]
    scale: float


class Paper:
    """A transparent sheet to paint on, over a box x0 y0 x1 y1 of face units, at `scale` pixels a unit."""

    def __init__(self, box: tuple[float, float, float, float], scale: float) -> None:
        x0, y0, x1, y1 = box
        self.origin, self.scale = (x0, y0), scale
        self.size = (max(int(np.ceil((y1 - y0) * scale)), 1), max(int(np.ceil((x1 - x0) * scale)), 1))
        self.rgba = np.zeros((*self.size, 4), np.float32)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Face units (k, 2) -> fixed-point pixels (k, 2) int32."""
        return np.round((np.asarray(points) - self.origin) * self.scale * 2**_SHIFT).astype(np.int32)

    def grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Face coordinates of every pixel: x (1, w) and y (h, 1)."""
        h, w = self.size
        return (
            (np.arange(w, dtype=np.float32) / self.scale + self.origin[0])[None, :],
            (np.arange(h, dtype=np.float32) / self.scale + self.origin[1])[:, None],
        )

    def soften(self, mask: np.ndarray, blur: float) -> np.ndarray:
        """Blur a mask by `blur` face units."""
        sigma = blur * self.scale
        return cv2.GaussianBlur(mask, (0, 0), sigma) if sigma > 0.3 else mask

    def area(self, points: np.ndarray, blur: float = 0.0) -> np.ndarray:
        """Coverage (h, w) in 0..1 of a polygon in face units."""
        mask = np.zeros(self.size, np.uint8)
        cv2.fillPoly(mask, [self.pixels(points)], 255, cv2.LINE_AA, _SHIFT)
        return self.soften(mask.astype(np.float32) / 255, blur)

    def oval(self, x: float, y: float, rx: float, ry: float, blur: float = 0.0) -> np.ndarray:
        """Coverage of an ellipse."""
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        return self.area(np.stack([x + rx * np.cos(angle), y + ry * np.sin(angle)], 1), blur)

    def line(self, points: np.ndarray, width: float, blur: float = 0.0, closed: bool = False) -> np.ndarray:
        """Coverage of a line of the given width in face units."""
        mask = np.zeros(self.size, np.uint8)
        thickness = max(int(round(width * self.scale)), 1)
        cv2.polylines(mask, [self.pixels(points)], closed, 255, thickness, cv2.LINE_AA, _SHIFT)
        return self.soften(mask.astype(np.float32) / 255, blur)

    def glow(self, x: float, y: float, rx: float, ry: float) -> np.ndarray:
        """A soft round spot (h, w): 1 at its centre, Gaussian."""
        gx, gy = self.grid()
        return np.exp(-(((gx - x) / rx) ** 2)) * np.exp(-(((gy - y) / ry) ** 2))

    def paint(self, mask: np.ndarray, colour: Colour, opacity: float = 1.0) -> None:
        """Lay a colour over the sheet."""
        where = _window(mask)
        alpha = (mask[where] * opacity)[..., None]
        part = self.rgba[where]
        part += alpha * (np.array([*colour, 255.0], np.float32) - part)

    def tint(self, mask: np.ndarray, colour: Colour, opacity: float = 1.0) -> None:
        """Lay a colour only where something is painted already."""
        where = _window(mask)
        alpha = (mask[where] * opacity)[..., None]
        part = self.rgba[where]
        part += alpha * (part[..., 3:] * np.array([*(c / 255 for c in colour), 1.0], np.float32) - part)

    def sprite(self, keep: np.ndarray | None = None) -> Sprite:
        """Freeze what is painted, faded by keep (h, w) where given, without the empty margin."""
        rgba = self.rgba if keep is None else self.rgba * keep[..., None]
        rows, columns = _window(rgba[..., 3] / 255)
        pixels = np.clip(rgba[rows, columns] + 0.5, 0, 255).astype(np.uint8)
        corner = (self.origin[0] + columns.start / self.scale, self.origin[1] + rows.start / self.scale)
        return Sprite(pixels, corner, self.scale)


def _window(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns outside which a mask is next to nothing."""
    spans = []
    for line in (mask.max(1), mask.max(0)):
        used = np.flatnonzero(line > 0.003)
        spans.append(slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 1))
    return spans[0], spans[1]


def head_outline(who: Identity) -> np.ndarray:
    """The closed outline (k, 2) of skull and jaw in face units: chin at y = 1."""
    w, jaw = who.face_width, who.jaw_width
    return smooth(
        mirrored(
            [
                (0, -1.32),
                (0.42 * w, -1.26),
                (0.80 * w, -0.98),
                (0.985 * w, -0.5),
                (w, -0.05),
                (0.95 * w, 0.32),
                (w * (0.52 + 0.36 * jaw), 0.62),
                (w * (0.22 + 0.38 * jaw), 0.87),
                (0.14 + 0.10 * jaw, 0.985),
                (0, 1.0),
            ]
        )
    )


JAW_LINE = 0.36  # what lies below this height follows the jaw


def paint_head(who: Identity, scale: float, rng: np.random.Generator) -> tuple[Sprite, Sprite]:
    """Ears, skull and beard as two sprites: all above the jaw line, and the jaw that stretches below it."""
    paper = Paper((-1.35, -1.5, 1.35, 1.15), scale)
    w, skin = who.face_width, who.skin
    dark, light = shade(mix(skin, (120, 30, 20), 0.18), 0.72), shade(mix(skin, (255, 225, 190), 0.25), 1.08)
    for side in (-1, 1):
        ear = smooth(
            np.array([(0.92, -0.2), (1.06, -0.26), (1.16, -0.12), (1.12, 0.12), (1.0, 0.26), (0.9, 0.2)])
        )
        paper.paint(paper.area(ear * (side * w, 1)), mix(skin, dark, 0.25))
        inner = smooth(np.array([(0.98, -0.12), (1.08, -0.16), (1.1, -0.02), (1.02, 0.12)]))
        paper.paint(paper.area(inner * (side * w, 1), 0.02), dark, 0.55)
    outline = head_outline(who)
    face = paper.area(outline)
    paper.paint(face, skin)
    gx, gy = paper.grid()
    rim = face - paper.soften(paper.area(outline * 0.93 + (0, -0.01)), 0.12)
    paper.tint(np.clip(rim, 0, 1) * face, dark, 0.55)
    lit = np.exp(-(((gx - 0.32 * who.light) / 0.5) ** 2) - ((gy + 0.45) / 0.42) ** 2)
    paper.tint(lit * face, light, 0.5)
    away = 1 / (1 + np.exp((gx * np.sign(who.light) + 0.42) * 9)) * np.ones_like(gy)
    paper.tint(away * face, dark, 0.38 * abs(who.light))
    paper.tint(paper.glow(0, 0.8, 0.2, 0.12) * face, light, 0.35)
    if who.fringe_covers:
        paper.tint(face * (gy < -0.2) * np.clip((-gy - 0.35) / 0.4, 0, 1), dark, 0.35)
    if who.hair_style != "bald":
        cap = paper.area(outline) * np.clip((-gy - 0.72 + 0.25 * (gx / w) ** 2) / 0.12, 0, 1)
        paper.tint(cap, shade(who.hair, 0.7), 0.9)
    elif who.stubble_scalp:
        cap = face * np.clip((-gy - 0.72 + 0.35 * (gx / w) ** 2) / 0.2, 0, 1)
        paper.tint(cap, shade(who.hair, 0.8), 0.28)
    if who.beard in ("stubble", "full"):
        _paint_beard(paper, who, face, rng)
    if who.earrings != "none":
        metal = (232, 190, 80) if who.earrings == "gold" else (214, 218, 226)
        for side in (-1, 1):
            x = side * 1.06 * w
            paper.paint(paper.oval(x, 0.27, 0.055, 0.055), metal)
            paper.paint(paper.oval(x - 0.015, 0.255, 0.02, 0.02), (255, 255, 245), 0.8)
    ramp = np.clip((gy - JAW_LINE + 0.05) / 0.05, 0, 1) * np.ones_like(gx)
    fall = np.clip((JAW_LINE + 0.1 - gy) / 0.1, 0, 1) * np.ones_like(gx)
    return paper.sprite(fall), paper.sprite(ramp)


def _paint_beard(paper: Paper, who: Identity, face: np.ndarray, rng: np.random.Generator) -> None:
    """Stubble or a full beard, which end where the face ends."""
    w, hair = who.face_width, shade(who.hair, 0.85)
    gx, gy = paper.grid()
    if who.beard == "stubble":
        low = np.clip((gy - 0.12 - 0.25 * (1 - np.abs(gx) / w)) / 0.22, 0, 1)
        bare = paper.glow(0, 0.55, 0.22, 0.1)
        grain = 0.75 + 0.25 * rng.random(paper.size, np.float32)
        paper.tint(face * low * (1 - 0.7 * bare) * grain, mix(hair, (36, 32, 32), 0.65), 0.36)
        return
    outline = mirrored(
        [
            (0.0, 0.39),
            (0.26, 0.37),
            (0.46, 0.43),
            (0.66, 0.34),
            (0.8, 0.08),
            (0.86, -0.12),
            (1.1, -0.12),
            (1.1, 0.7),
            (0.6, 1.25),
            (0.0, 1.25),
        ]
    )
    _paint_whiskers(paper, paper.area(outline * (w / 0.9, 1), 0.025) * face, hair, rng)


def _paint_whiskers(paper: Paper, mask: np.ndarray, hair: Colour, rng: np.random.Generator) -> None:
    grain = cv2.GaussianBlur(rng.random(paper.size, np.float32), (0, 0), 0.8)
    paper.paint(mask, hair, 0.93)
    paper.tint(mask * np.clip((grain - 0.5) * 4, 0, 1), shade(hair, 1.25), 0.3)


def paint_tuft(who: Identity, scale: float, rng: np.random.Generator) -> Sprite | None:
    """A goatee or moustache, which stays around the mouth as the head turns; nothing for other beards."""
    if who.beard not in ("goatee", "moustache"):
        return None
    paper = Paper((-0.6, 0.2, 0.6, 1.1), scale)
    if who.beard == "goatee":
        outline = smooth(
            mirrored([(0, 0.43), (0.24, 0.43), (0.36, 0.55), (0.33, 0.8), (0.22, 0.975), (0, 1.0)])
        )
        mask = paper.area(outline, 0.025)
    else:
        half = [(0.0, 0.37), (0.16, 0.36), (0.34, 0.45), (0.4, 0.56), (0.28, 0.5), (0.12, 0.455), (0.0, 0.46)]
        mask = paper.area(smooth(mirrored(half)), 0.012)
    _paint_whiskers(paper, mask, shade(who.hair, 0.85), rng)
    return paper.sprite()


def paint_features(who: Identity, scale: float, rng: np.random.Generator) -> Sprite:
    """Nose, cheeks, eye sockets and freckles: what lies on the face and moves with its front."""
    paper = Paper((-0.95, -0.6, 0.95, 0.62), scale)
    skin = who.skin
    dark, light = shade(mix(skin, (130, 30, 20), 0.25), 0.62), shade(mix(skin, (255, 230, 200), 0.3), 1.12)
    blush = mix(skin, (226, 80, 80), 0.5)
    for side in (-1, 1):
        paper.paint(paper.glow(side * 0.47, 0.26, 0.2, 0.15), blush, who.blush)
        paper.paint(paper.glow(side * who.eye_gap, -0.2, 0.22, 0.12), dark, 0.20)
        if who.eyeshadow is not None:
            paper.paint(paper.glow(side * who.eye_gap, -0.2, 0.15, 0.07), who.eyeshadow, 0.5)
    nw, ny = who.nose_width, who.nose_tip
    side = -1 if who.light >= 0 else 1
    wall = smooth(
        np.array(
            [
                (0.05, -0.3),
                (0.085, -0.05),
                (nw * 0.95, ny - 0.05),
                (nw * 0.8, ny + 0.06),
                (0.02, ny - 0.02),
                (0.03, -0.1),
            ]
        )
    )
    paper.paint(paper.area(wall * (side, 1), 0.025), dark, 0.26)
    base = smooth(
        mirrored(
            [
                (0, ny + 0.03),
                (nw * 0.5, ny + 0.02),
                (nw, ny),
                (nw * 0.95, ny + 0.07),
                (nw * 0.5, ny + 0.085),
                (0, ny + 0.11),
            ]
        )
    )
    paper.paint(paper.area(base, 0.022), dark, 0.45)
    paper.paint(
        paper.area(np.array([(-0.035, -0.25), (0.035, -0.25), (0.04, ny - 0.1), (-0.04, ny - 0.1)]), 0.03),
        light,
        0.4,
    )
    paper.paint(paper.glow(-side * 0.015, ny - 0.02, nw * 0.42, 0.06), light, 0.75)
    for s in (-1, 1):
        paper.paint(paper.oval(s * nw * 0.55, ny + 0.055, nw * 0.24, 0.026, 0.008), shade(dark, 0.6), 0.75)
    paper.paint(paper.glow(0, ny + 0.17, 0.05, 0.05), dark, 0.18)
    if who.freckles:
        for _ in range(28):
            x, y = rng.normal(0, 0.33), rng.normal(0.18, 0.1)
            r = rng.uniform(0.013, 0.022)
            paper.paint(paper.oval(float(x), float(y), r, r), mix(skin, (140, 70, 30), 0.55), 0.5)
    return paper.sprite()


def paint_glasses(who: Identity, scale: float) -> Sprite | None:
    """Spectacles with a slight glint, or nothing."""
    if who.glasses == "none":
        return None
    paper = Paper((-1.2, -0.5, 1.2, 0.35), scale)
    x, y, r, colour = who.eye_gap, -0.1, 0.255, who.glasses_rgb
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    power = 1.0 if who.glasses == "round" else 0.45
    c, s = np.cos(angle), np.sin(angle)
    tall = 1.0 if who.glasses == "round" else 0.82
    ring = np.stack([np.sign(c) * np.abs(c) ** power * r, np.sign(s) * np.abs(s) ** power * r * tall], 1)
    for side in (-1, 1):
        lens = ring + (side * x, y)
        paper.paint(paper.area(lens), (225, 240, 255), 0.10)
        glint = np.array([(-0.14, 0.1), (0.04, -0.16), (0.1, -0.16), (-0.08, 0.12)]) + (side * x, y)
        paper.paint(paper.area(glint, 0.01), (255, 255, 255), 0.16)
        paper.paint(
            paper.line(
                np.array([(side * (x + r), y - 0.06), (side * who.face_width * 0.95, y - 0.09)]), 0.035
            ),
            colour,
        )
        paper.paint(paper.line(lens, who.glasses_width, closed=True), colour)
        paper.paint(paper.line(lens + (-0.006, -0.012), 0.012, closed=True), shade(colour, 1.35), 0.5)
    gap = x - r
    bridge = smooth(np.array([(-gap, y - 0.03), (0, y - 0.08), (gap, y - 0.03)]), closed=False)
    paper.paint(paper.line(bridge, 0.045), colour)
    return paper.sprite()


def paint_body(who: Identity, paper: Paper) -> None:
    """Neck, shoulders, clothes and jewellery, onto the sheet that shows the whole frame."""
    neck, skin, shirt = who.neck_width, who.skin, who.shirt
    dark = shade(mix(skin, (110, 30, 20), 0.2), 0.6)
    wide = who.shoulders
    gx, gy = paper.grid()
    bottom = max(float(gy.max()), 2.5) + 0.5
    throat = smooth(
        mirrored(
            [(0, 0.5), (neck, 0.5), (neck * 0.97, 1.0), (neck * 1.08, 1.3), (neck * 1.9, 1.62), (0, 2.3)]
        )
    )
    paper.paint(paper.area(throat), mix(skin, dark, 0.12))
    cover = paper.area(throat)
    chin = paper.soften(paper.area(head_outline(who) * (0.93, 1) + (0.04 * -who.light, 0.2)), 0.09)
    paper.tint(chin * cover, dark, 0.75)
    collar_y = 1.36 if who.collar != "crew" else 1.3
    top = smooth(
        np.array(
            [
                (neck * 1.12, collar_y - 0.02),
                (neck * 1.9, 1.44),
                (wide * 0.72, 1.6),
                (wide * 0.97, 1.83),
                (wide * 1.12, 2.4),
            ]
        ),
        closed=False,
    )
    depth = {"crew": 1.6, "v": 1.95, "shirt": 1.8, "scoop": 1.85, "zip": 1.55}[who.collar]
    if who.collar in ("crew", "scoop"):
        t = np.linspace(0, 0.95, 9) * np.pi / 2
        line = np.stack([neck * 1.12 * np.sin(t), collar_y + (depth - collar_y) * np.cos(t)], 1)
    else:
        line = np.array([(0.0, depth), (neck * 0.5, 1.5 + (depth - 1.5) * 0.55)])
    right = np.concatenate([line, top, np.array([(wide * 1.2, bottom), (0, bottom)])])
    left = right[::-1] * (-1, 1)
    mask = paper.area(np.concatenate([right, left]))
    paper.paint(mask, shirt)
    paper.tint(mask * np.clip((gy - 1.5) / 1.2, 0, 1), shade(shirt, 0.6), 0.6)
    paper.tint(mask * paper.glow(0.75 * who.light, 1.75, 0.55, 0.3), shade(shirt, 1.25), 0.45)
    for side in (-1, 1):
        fold = smooth(np.array([(wide * 0.62, 2.5), (wide * 0.68, 2.1), (wide * 0.6, 1.85)]), closed=False)
        paper.tint(paper.line(fold * (side, 1), 0.05, 0.03) * mask, shade(shirt, 0.5), 0.5)
    if who.collar == "shirt":
        for side in (-1, 1):
            half = [
                (neck * 1.02, 1.2),
                (neck * 1.75, 1.46),
                (neck * 1.1, 1.86),
                (0.03, 1.72),
                (neck * 0.7, 1.5),
            ]
            flap = np.array(half) * (side, 1)
            paper.paint(paper.area(flap + (0, 0.03), 0.03), shade(shirt, 0.4), 0.5)
            paper.paint(paper.area(flap), who.trim)
            low = paper.area(flap * (0.98, 1)) * np.clip((gy - 1.45) / 0.5, 0, 1)
            paper.paint(low, shade(who.trim, 0.75), 0.5)
    elif who.collar == "zip":
        zipper = np.array([(-0.035, 1.5), (0.035, 1.5), (0.035, bottom), (-0.035, bottom)])
        paper.paint(paper.area(zipper), who.trim)
    else:
        edge = right[: len(line) + 1]
        rim = np.concatenate([(edge * (-1, 1))[::-1], edge])
        paper.paint(paper.line(rim, 0.05), shade(shirt, 0.72))
    if who.necklace != "none":
        metal = {"gold": (226, 182, 70), "silver": (206, 210, 220), "beaded": who.trim}[who.necklace]
        t = np.linspace(-1, 1, 21)
        chain = np.stack([t * neck * 1.18, 1.28 + 0.36 * (1 - t**2)], 1)
        paper.paint(paper.line(chain + (0, 0.03), 0.06, 0.02), (20, 10, 10), 0.3)
        paper.paint(paper.line(chain, 0.035 if who.necklace != "beaded" else 0.08), metal)
        if who.necklace != "beaded":
            paper.paint(paper.oval(0, 1.68, 0.06, 0.06), metal)


def paint_background(who: Identity, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """The wall behind the avatar: (height, width, 3) uint8 RGB."""
    gy, gx = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    a, b = np.array(who.background_rgb), np.array(who.background_rgb2)
    if who.background == "plain":
        share = 0.125 * (1 - gy)
    elif who.background == "gradient":
        tilt = float(rng.uniform(-0.6, 0.6))
        share = np.clip(gy + tilt * (gx - 0.5), 0, 1)
    else:
        share = np.clip(np.hypot((gx - 0.5) * width / height, gy - 0.45) * 1.3, 0, 1)
    picture: np.ndarray = (a + (b - a) * share[..., None]).astype(np.float32)
    short = min(height, width)
    if who.background == "bokeh":
        for _ in range(int(rng.integers(9, 18))):
            spot: np.ndarray = np.zeros((height, width), np.float32)
            centre = (int(rng.uniform(0, width)), int(rng.uniform(0, height)))
            cv2.circle(spot, centre, int(rng.uniform(0.04, 0.13) * short), 1.0, -1, cv2.LINE_AA)
            spot = cv2.GaussianBlur(spot, (0, 0), short * 0.008)
            light = np.array(mix(who.background_rgb, tuple(rng.uniform(110, 255, 3)), 0.6))
            picture += (light - picture) * (spot * rng.uniform(0.25, 0.6))[..., None]
    if who.background == "shapes":
        layer: np.ndarray = picture.copy()
        for _ in range(int(rng.integers(4, 8))):
            x, y = int(rng.uniform(-0.1, 1) * width), int(rng.uniform(-0.1, 0.7) * height)
            size = (int(rng.uniform(0.1, 0.35) * width), int(rng.uniform(0.2, 0.7) * height))
            wall = mix(who.background_rgb, who.background_rgb2, float(rng.random()))
            tone = shade(wall, float(rng.uniform(0.6, 1.25)))
            cv2.rectangle(layer, (x, y), (x + size[0], y + size[1]), tone, -1)
        picture = np.asarray(cv2.GaussianBlur(layer, (0, 0), short * 0.014))
    return np.clip(picture, 0, 255).astype(np.uint8)
