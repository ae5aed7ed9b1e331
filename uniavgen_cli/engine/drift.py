"""How far a long clip wanders from its first window: loudness and colour of each."""

from typing import Any

import cv2
import numpy as np

from uniavgen_cli.engine.request import Plan

BLOCK_S, STEP_S = 0.4, 0.1
FLOOR_LUFS, BELOW_LU = -70.0, 10.0  # of a block that counts: at all, and beside the others


class Drift:
    """Figures of each window's own part, filled in as it is decoded."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._loudness: dict[int, float | None] = {}
        self._colour: dict[int, np.ndarray] = {}

    def saw(self, index: int, frames: np.ndarray) -> None:
        """Frames (n, h, w, 3) uint8 of a window."""
        self._colour[index] = mean_colour(frames)

    def heard(self, index: int, samples: np.ndarray) -> None:
        """Samples (n,) of a window."""
        self._loudness[index] = loudness(samples, self.plan.spec.sample_rate)

    def report(self) -> list[dict[str, Any]]:
        """A row a window: where it begins and how long it is, loudness in LUFS and mean colour (CIELAB) with
        their changes (LU, delta E 1976) against the first window; None where there is nothing to tell.
        """
        fps = self.plan.spec.fps
        rows: list[dict[str, Any]] = []
        for index, window in enumerate(self.plan.windows):
            row: dict[str, Any] = {
                "start_s": round((window.first_new - self.plan.context_frames) / fps, 3),
                "seconds": round(window.added / fps, 3),
                **dict.fromkeys(("loudness_lufs", "loudness_change_lu", "colour_lab", "colour_change")),
            }
            now, first = self._loudness.get(index), self._loudness.get(0)
            if now is not None:
                row["loudness_lufs"] = round(now, 2)
                row["loudness_change_lu"] = None if first is None else round(now - first, 2)
            if index in self._colour and 0 in self._colour:
                row["colour_lab"] = [round(float(x), 2) for x in self._colour[index]]
                change = float(np.linalg.norm(self._colour[index] - self._colour[0]))
                row["colour_change"] = round(change, 2)
            rows.append(row)
        return rows


def mean_colour(frames: np.ndarray) -> np.ndarray:
    """The mean over frames (n, h, w, 3) uint8 of each one's mean colour, in CIELAB (3,)."""
    means = frames.reshape(len(frames), -1, 3).mean(1) / 255
    return cv2.cvtColor(means[None].astype(np.float32), cv2.COLOR_RGB2LAB)[0].mean(0)


def loudness(samples: np.ndarray, sample_rate: int) -> float | None:
    """The gated loudness of mono samples (n,) in LUFS; None of silence. Source: ITU-R BS.1770-4.

    Its two filters are applied to the spectrum, which at the ends differs from a filter that starts at rest.
    """
    block, step = round(BLOCK_S * sample_rate), round(STEP_S * sample_rate)
    samples = np.pad(samples, (0, max(0, block - len(samples))))
    spectrum = np.fft.rfft(samples, 2 * len(samples))
    hz = np.fft.rfftfreq(2 * len(samples), 1 / sample_rate)
    power = np.square(np.fft.irfft(spectrum * k_weight(hz))[: len(samples)])
    sums = np.concatenate([[0.0], np.cumsum(power, dtype=np.float64)])
    starts = np.arange(0, len(samples) - block + 1, step)
    blocks = (sums[starts + block] - sums[starts]) / block
    counted = blocks[_lufs(blocks) > FLOOR_LUFS]
    if not len(counted):
        return None
    counted = counted[_lufs(counted) > float(_lufs(counted.mean())) - BELOW_LU]
    return float(_lufs(counted.mean()))


def _lufs(power: Any) -> Any:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-12))


def k_weight(hz: np.ndarray) -> np.ndarray:
    """The complex response of BS.1770's head shelf and high pass, as given there for 48 kHz."""
    z = np.exp(-2j * np.pi * hz / 48_000)
    shelf = (1.53512485958697 - 2.69169618940638 * z + 1.19839281085285 * z**2) / (
        1 - 1.69065929318241 * z + 0.73248077421585 * z**2
    )
    high_pass = (1 - 2 * z + z**2) / (1 - 1.99004745483398 * z + 0.99007225036621 * z**2)
    return shelf * high_pass
