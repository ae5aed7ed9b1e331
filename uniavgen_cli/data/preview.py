"""A look at the data: a sheet of avatars, a strip of one speaking, and a clip of it with its voice."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from uniavgen_cli.data.avatar import EMOTIONS, MOUTH_PARAMETERS, render, sample_identity, sample_motion
from uniavgen_cli.data.dataset import FPS, sample_clip
from uniavgen_cli.errors import OutputError
from uniavgen_cli.media.output import check_output
from uniavgen_cli.media.video import write_clip

SIDE = 256  # twice nano's size, to be looked at
_COLUMNS, _STRIP = 7, 35


def preview(out_dir: str | os.PathLike[str], count: int = 35, seed: int = 0) -> list[Path]:
    """Write avatars.png, speaking.png and speaking.mp4 into a folder, made when missing; the paths written.

    The sheet shows `count` avatars; an earlier preview is replaced. Raises OutputError.
    """
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"the folder {folder} can't be made: {error.strerror}", "write elsewhere") from None
    sheet, strip, clip = folder / "avatars.png", folder / "speaking.png", folder / "speaking.mp4"
    _write_png(sheet, contact_sheet(seed, count))
    speaking = sample_clip(seed, 0, sizes=[(SIDE, SIDE)])
    frames = speaking.draw().frames
    _write_png(strip, tiled(frames[:_STRIP], _COLUMNS))
    write_clip(clip, frames, speaking.samples, FPS, speaking.spec.sample_rate, overwrite=True)
    return [sheet, strip, clip]


def contact_sheet(seed: int, count: int, side: int = SIDE) -> np.ndarray:
    """`count` avatars, every emotion in turn, in mid-word, as one picture (h, w, 3) uint8 RGB."""
    pictures = []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        identity, emotion = sample_identity(rng), EMOTIONS[index % len(EMOTIONS)]
        mouth = np.zeros((1, len(MOUTH_PARAMETERS)))
        mouth[0, :4] = rng.uniform(0, (0.6, 0.6, 0.4, 0.8))
        motion = sample_motion(rng, 1, FPS, emotion)
        pictures.append(render(identity, emotion, mouth, motion, side, side).frames[0])
    return tiled(np.stack(pictures), _COLUMNS)


def tiled(pictures: np.ndarray, columns: int) -> np.ndarray:
    """Pictures (n, h, w, 3) in rows of `columns`, the last row filled up with white."""
    n, h, w, _ = pictures.shape
    columns = min(columns, n)
    white = np.full((-n % columns, h, w, 3), 255, np.uint8)
    grid = np.concatenate([pictures, white]).reshape(-1, columns, h, w, 3)
    return grid.swapaxes(1, 2).reshape(-1, columns * w, 3)


def _write_png(path: Path, picture: np.ndarray) -> None:
    _, data = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    check_output(path, overwrite=True, suffixes=(".png",)).write_bytes(data.tobytes())
