"""How near pictures come to the ones they should be."""

import cv2
import numpy as np


def psnr(frames: np.ndarray, truth: np.ndarray) -> float:
    """Peak signal-to-noise ratio of uint8 pixels against the true ones, over all of them at once.

    dB, 0 (black for white) to 99 (the same); higher is better, and 30 looks alike.
    """
    error = float(np.mean((frames.astype(np.float32) - truth.astype(np.float32)) ** 2))
    return min(99.0, 10 * np.log10(255**2 / max(error, 1e-9)))


def mouth_psnr(frames: np.ndarray, truth: np.ndarray, boxes: np.ndarray) -> float:
    """The same within boxes (n, 4) of x0 y0 x1 y1 pixels, one a frame: dB, 0 to 99, higher is better."""
    height, width = truth.shape[1:3]
    pixels: list[tuple[np.ndarray, np.ndarray]] = []
    for made, true, box in zip(frames, truth, boxes, strict=True):
        x0, y0, x1, y1 = np.clip(np.round(box).astype(int), 0, (width, height, width, height))
        pixels.append((made[y0:y1, x0:x1].reshape(-1, 3), true[y0:y1, x0:x1].reshape(-1, 3)))
    return psnr(np.concatenate([made for made, _ in pixels]), np.concatenate([true for _, true in pixels]))


def ssim(frame: np.ndarray, truth: np.ndarray) -> float:
    """Likeness of structure of two uint8 pictures (h, w, 3), by their brightness.

    From -1 to 1 (the same), higher is better. Wang et al. 2004, windows of a Gaussian of 1.5 pixels.
    """
    one, other = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float64) for p in (frame, truth))

    def around(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    mean_one, mean_other = around(one), around(other)
    spread = around(one * one) - mean_one**2 + around(other * other) - mean_other**2
    shared = around(one * other) - mean_one * mean_other
    light, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    found = (2 * mean_one * mean_other + light) * (2 * shared + contrast)
    found /= (mean_one**2 + mean_other**2 + light) * (spread + contrast)
    return float(found.mean())
