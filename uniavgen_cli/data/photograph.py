"""Drawn clips made more like photographs: heads of any size and place, uneven light, texture and grain."""

from dataclasses import replace

import cv2
import numpy as np

from uniavgen_cli.data.avatar import Rendered
from uniavgen_cli.data.dataset import SpeakingClip
from uniavgen_cli.data.identity import Identity

SMALLEST, LARGEST = 0.5, 1.6  # of a face, against half the frame's short side
CHIN, CROWN = 0.3, 0.2  # of the frame's short side at scale 1: below the middle of the face, and above it


def photographed(clip: SpeakingClip, rng: np.random.Generator) -> Rendered:
    """The clip drawn with the head anywhere, as if a camera had taken it: the mouth stays in the frame."""
    spec = clip.spec
    drawn = replace(clip, identity=reframed(clip.identity, rng, spec.height, spec.width)).draw()
    return replace(drawn, frames=developed(drawn.frames, rng))


def reframed(who: Identity, rng: np.random.Generator, height: int, width: int) -> Identity:
    """The same person nearer or farther, and off the middle of a frame of that size."""
    scale = float(np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST))))
    short = min(height, width)
    sideways = max(0.0, 0.5 - 0.2 * scale * short / width)
    # `position` counts up and down from the middle in shares of the short side
    half = 0.5 * height / short
    lowest, highest = 0.5 + half - CHIN * scale, 0.5 - half + CROWN * scale
    return replace(
        who,
        scale=scale,
        position=(
            float(np.clip(rng.normal(0, 0.15), -sideways, sideways)),
            float(np.clip(rng.normal(0.48, 0.12), min(highest, lowest), lowest)),
        ),
    )


def developed(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Frames (n, h, w, 3) uint8 under uneven, coloured light and with texture and grain that stand still."""
    height, width = frames.shape[1:3]
    light = np.exp(_waves(rng, height, width, cells=3) * rng.uniform(0, 0.3))
    cast = np.exp(rng.normal(0, 0.07, 3))
    texture = np.sum([_waves(rng, height, width, cells=cells) for cells in (8, 16, 32)], axis=0)
    texture *= rng.uniform(0, 5)
    grain = rng.normal(0, rng.uniform(0, 5), (height, width, 3))
    gamma, contrast = np.exp(rng.normal(0, 0.2)), rng.uniform(0.7, 1.1)
    curve = 255 * (np.arange(256) / 255) ** gamma
    curve = 127 + contrast * (curve - 127)
    spread = (texture[..., None] + grain).astype(np.float32)
    gain = (light[..., None] * cast).astype(np.float32)
    toned = curve.astype(np.float32)[frames]
    return np.clip(toned * gain + spread, 0, 255).astype(np.uint8)


def _waves(rng: np.random.Generator, height: int, width: int, *, cells: int) -> np.ndarray:
    """Smooth noise (height, width) of unit deviation, `cells` of it across the short side."""
    short = min(height, width)
    shape = (max(2, round(cells * height / short)), max(2, round(cells * width / short)))
    coarse = rng.normal(size=shape).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
