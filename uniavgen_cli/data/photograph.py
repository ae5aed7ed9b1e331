"""Drawn clips made more like photographs: other faces, colours, light, and much that stands still on them."""

from dataclasses import replace

import cv2
import numpy as np

from uniavgen_cli.data.avatar import Rendered

BENT = 0.02  # of the short side: deviation by which what is drawn is moved, smoothly, to make other faces
MOUTH_ROOM = 0.17  # of the short side around the mouth's middle, in which nothing lies over it


def photographed(drawn: Rendered, rng: np.random.Generator) -> Rendered:
    """A drawn clip as if a camera had taken it; the mouth does what it did, the boxes stay where they were.

    What is done to one frame is done to all: faces are bent, colours turned, light is uneven, and other
    things lie over the picture, but not over the mouth.
    """
    x0, y0, x1, y1 = drawn.mouth_boxes.mean(0)
    frames = _bent(drawn.frames, rng)
    frames = _covered(frames, ((x0 + x1) / 2, (y0 + y1) / 2), rng)
    return replace(drawn, frames=developed(frames, rng))


def developed(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames (n, h, w, 3) uint8 under uneven, coloured light and with texture and grain that stand still."""
    height, width = frames.shape[1:3]
    light = np.exp(_waves(rng, height, width, cells=3) * rng.uniform(0, 0.35))
    cast = np.exp(rng.normal(0, 0.07, 3))
    texture = np.sum([_waves(rng, height, width, cells=cells) for cells in (8, 16, 32)], axis=0)
    texture *= rng.uniform(0, 6)
    grain = rng.normal(0, rng.uniform(0, 5), (height, width, 3))
    gamma, contrast = np.exp(rng.normal(0, 0.2)), rng.uniform(0.7, 1.1)
    curve = 255 * (np.arange(256) / 255) ** gamma
    curve = 127 + contrast * (curve - 127)
    spread = (texture[..., None] + grain).astype(np.float32)
    gain = (light[..., None] * cast).astype(np.float32)
    turned = (np.eye(3) * rng.uniform(0.5, 1.1) + rng.normal(0, 0.05, (3, 3))).astype(np.float32)
    turned += (1 - turned.sum(1, keepdims=True)) / 3  # greys stay grey
    soft = rng.uniform(0.3, 1.1) if rng.random() < 0.6 else 0.0  # a camera's edges, beside drawn ones
    out = np.empty_like(frames)
    for made, frame in zip(out, frames, strict=True):
        toned = cv2.transform(curve.astype(np.float32)[frame], turned)
        if soft:
            toned = cv2.GaussianBlur(toned, (0, 0), soft)
        made[:] = np.clip(toned * gain + spread, 0, 255)
    return out


def _bent(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames in which everything lies a little elsewhere, neighbours by as much."""
    height, width = frames.shape[1:3]
    amount = rng.uniform(0, BENT) * min(height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    across = columns + amount * _waves(rng, height, width, cells=4)
    down = rows + amount * _waves(rng, height, width, cells=4)
    edges = cv2.BORDER_REPLICATE
    return np.stack([cv2.remap(f, across, down, cv2.INTER_LINEAR, borderMode=edges) for f in frames])


def _covered(frames: np.ndarray, mouth: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    """Frames under patches of other pictures and a thin layer of one, which stand still."""
    height, width = frames.shape[1:3]
    octaves = [_waves(rng, height, width, cells=n, channels=3) / n**0.5 for n in (2, 4, 8, 16, 32)]
    other = rng.uniform(30, 220, 3) + rng.uniform(20, 70) * np.sum(octaves, axis=0)
    edge = rng.uniform(2, 12)
    patches = 1 / (1 + np.exp(-edge * (_waves(rng, height, width, cells=5) - rng.uniform(0.9, 2.2))))
    share = np.maximum(patches, rng.uniform(0, 0.2))
    rows, columns = np.mgrid[:height, :width]
    away = np.hypot(columns - mouth[0], rows - mouth[1]) / (MOUTH_ROOM * min(height, width))
    share = (share * np.clip(away - 1, 0, 1))[..., None].astype(np.float32)
    kept, laid = 1 - share, share * np.clip(other, 0, 255).astype(np.float32)
    return np.stack([np.rint(frame * kept + laid).astype(np.uint8) for frame in frames])


def _waves(
    rng: np.random.Generator, height: int, width: int, *, cells: int, channels: int | None = None
) -> np.ndarray:
    """Smooth noise (height, width) of unit deviation, `cells` of it across the short side; or of channels."""
    short = min(height, width)
    shape = (max(2, round(cells * height / short)), max(2, round(cells * width / short)))
    coarse = rng.normal(size=(*shape, channels) if channels else shape).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
