"""How much a clip's pictures move, and how much they flicker."""

import cv2
import numpy as np

_SIDE = 128  # pixels of the short side at which movement is looked at
_CELLS = 16  # rows and columns of the cells whose brightness is followed


def motion(frames: np.ndarray) -> float:
    """How far pixels move from frame to frame, in percent of the picture's short side.

    From 0 (a still) up; a talking head has 0.2 to 1, and neither end is better. The mean length of dense
    optical flow (DIS, arXiv 1603.03590) over frames (n, h, w, 3) uint8. Raises ValueError for fewer than two.
    """
    if len(frames) < 2:
        raise ValueError(f"{len(frames)} frames do not move")
    grey = [cv2.cvtColor(_small(frame, _SIDE), cv2.COLOR_RGB2GRAY) for frame in frames]
    finder = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    lengths = []
    for one, other in zip(grey[:-1], grey[1:], strict=True):
        flow = finder.calc(one, other, np.zeros((*one.shape, 2), np.float32))
        lengths.append(float(np.linalg.norm(flow, axis=-1).mean()))
    return 100 * float(np.mean(lengths)) / min(grey[0].shape)


def flicker(frames: np.ndarray) -> float:
    """How much brightness goes up and down from frame to frame, in levels of 255.

    From 0 (none) up, lower is better; It is the mean absolute second difference in time of the brightness of
    16 x 16 cells: a steady change, such as a turning head or a fading light, counts little, and a speaking
    mouth some. Frames (n, h, w, 3) uint8; ValueError for fewer than three.
    """
    if len(frames) < 3:
        raise ValueError(f"{len(frames)} frames can't flicker")
    size = (_CELLS, _CELLS)
    cells = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    bright = cells.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)  # n rows columns
    return float(np.abs(np.diff(bright, n=2, axis=0)).mean())


def _small(frame: np.ndarray, side: int) -> np.ndarray:
    scale = side / min(frame.shape[:2])
    size = (round(frame.shape[1] * scale), round(frame.shape[0] * scale))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
