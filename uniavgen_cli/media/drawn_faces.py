"""A tiny convolutional detector of drawn faces, in NumPy: it is asked before torch is there.

`training/face_stage.py` has the same network as it learns. One scale, without anchors (FCOS, arXiv
1904.01355, at a single level).
"""

from functools import lru_cache
from pathlib import Path

import numpy as np

STRIDE = 8  # pixels a cell
MULTIPLE = 16  # both sides of a picture are multiples of this
RARITY = 4.0  # faces are rare among cells, so training starts from "no face"
LONG_SIDE = 160  # pixels: the scale at which it was taught
GROUPS = 8  # of the channels that are normalised together

Weights = dict[str, np.ndarray]


@lru_cache(maxsize=1)
def load(path: Path) -> Weights:
    """The weights in a file, by their names, in float32."""
    from safetensors.numpy import load_file

    return {name: value.astype(np.float32) for name, value in load_file(path).items()}


def look(weights: Weights, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For every cell of 8x8 pixels of frame (h, w, 3) uint8: is a face's middle here, and its box.

    Scores (h/8, w/8) from 0 to 1 and boxes (h/8, w/8, 4), x0 y0 x1 y1 in pixels, forehead to chin and cheek
    to cheek. Both sides are multiples of 16.
    """
    fine = np.moveaxis(frame, 2, 0).astype(np.float32) / 127.5 - 1
    for i in range(3):
        fine = _layer(weights, f"stem.{i}", fine, stride=2)
    coarse = _layer(weights, "down", fine, stride=2)
    for i, dilation in enumerate((1, 2, 4)):
        coarse = coarse + _layer(weights, f"context.{i}", coarse, dilation=dilation)
    merged = _biased(weights, "lateral", fine) + coarse.repeat(2, axis=1).repeat(2, axis=2)
    made = _biased(weights, "head", _layer(weights, "merge", merged))
    # from the cell's middle to left, top, right, bottom
    left, top, right, bottom = 2 * STRIDE * np.exp(np.clip(made[1:], -4, 4))
    rows, columns = ((np.arange(count, dtype=np.float32) + 0.5) * STRIDE for count in made.shape[1:])
    boxes = [columns - left, rows[:, None] - top, columns + right, rows[:, None] + bottom]
    return 1 / (1 + np.exp(RARITY - made[0])), np.stack(boxes, axis=-1)


def _biased(weights: Weights, name: str, x: np.ndarray) -> np.ndarray:
    return _convolved(x, weights[f"{name}.weight"]) + weights[f"{name}.bias"][:, None, None]


def _layer(weights: Weights, name: str, x: np.ndarray, *, stride: int = 1, dilation: int = 1) -> np.ndarray:
    """Convolution, group norm and SiLU of x (c, h, w)."""
    x = _convolved(x, weights[f"{name}.0.weight"], stride, dilation)
    groups = x.reshape(GROUPS, -1)
    mean, variance = groups.mean(1, keepdims=True), groups.var(1, keepdims=True)
    x = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape)
    x = x * weights[f"{name}.1.weight"][:, None, None] + weights[f"{name}.1.bias"][:, None, None]
    return x / (1 + np.exp(-x))


def _convolved(x: np.ndarray, kernel: np.ndarray, stride: int = 1, dilation: int = 1) -> np.ndarray:
    """x (c, h, w) by kernel (o, c, k, k), padded so that sides are h and w over the stride."""
    size = kernel.shape[2]
    padding = dilation * (size // 2)
    height, width = x.shape[1] // stride, x.shape[2] // stride
    padded = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
    made = np.zeros((len(kernel), height * width), np.float32)
    for i in range(size):
        for j in range(size):
            rows = slice(i * dilation, i * dilation + height * stride, stride)
            columns = slice(j * dilation, j * dilation + width * stride, stride)
            made += kernel[:, :, i, j] @ padded[:, rows, columns].reshape(len(x), -1)
    return made.reshape(-1, height, width)
