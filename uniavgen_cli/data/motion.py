"""How an avatar holds and turns its head, blinks and glances."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Motion:
    """How a head moves, a value a frame: angles in radians, sway in face units, blink 0..1, gaze -1..1."""

    yaw: np.ndarray  # (n,), positive turns to the picture's right
    pitch: np.ndarray  # (n,), positive looks up
    roll: np.ndarray  # (n,)
    sway: np.ndarray  # (n, 2)
    blink: np.ndarray  # (n,), 1 is shut
    gaze: np.ndarray  # (n, 2)
    brow: np.ndarray  # (n,), lift in face units
    intensity: float  # of the emotion, 0..1

    def calmer(self, liveliness: float) -> Motion:
        """The same blinks and glances with `liveliness` times as much movement of the head and brows."""

        def near_mean(track: np.ndarray) -> np.ndarray:
            mean = track.mean(axis=0)
            return mean + liveliness * (track - mean)

        return replace(
            self,
            yaw=near_mean(self.yaw),
            pitch=near_mean(self.pitch),
            roll=near_mean(self.roll),
            sway=near_mean(self.sway),
            brow=near_mean(self.brow),
        )

    def stiller(self, variety: float) -> Motion:
        """Nearer to somebody who looks straight ahead, with open eyes: all turns and lids times `variety`."""
        tracks = ("yaw", "pitch", "roll", "sway", "blink", "gaze", "brow")
        return replace(self, **{name: variety * getattr(self, name) for name in tracks})


def _drift(rng: np.random.Generator, time: np.ndarray, amount: float, rate_hz: float) -> np.ndarray:
    waves = [
        np.sin(2 * np.pi * (rate_hz * f * time * rng.uniform(0.7, 1.3) + rng.random())) / f
        for f in (0.6, 1.0, 1.7)
    ]
    return amount * np.sum(waves, axis=0) / 2


def sample_motion(rng: np.random.Generator, num_frames: int, fps: float, emotion: str) -> Motion:
    """Draw slow turns of the head, blinks and glances for num_frames at fps; lively emotions move more."""
    time = np.arange(num_frames) / fps
    lively = {"sad": 0.7, "neutral": 0.9, "happy": 1.15, "angry": 1.2, "surprised": 1.1}.get(emotion, 1.0)
    blink = np.zeros(num_frames)
    moment = rng.uniform(-0.5, 3.0)
    while moment < time[-1] + 0.3:
        blink = np.maximum(blink, np.clip(1.35 - np.abs(time - moment) / 0.1, 0, 1))
        moment += rng.uniform(1.4, 4.5)
    gaze = np.zeros((num_frames, 2))
    glance = 0.0
    while glance < time[-1]:
        gaze[time >= glance] = rng.normal(0, (0.22, 0.1))
        glance += rng.uniform(0.7, 2.5)
    tilt = {"sad": -0.05, "afraid": -0.02, "angry": -0.03, "surprised": 0.03}.get(emotion, 0.0)
    return Motion(
        yaw=rng.normal(0, 0.09) + _drift(rng, time, 0.13 * lively, 0.25),
        pitch=tilt + rng.normal(0, 0.03) + _drift(rng, time, 0.05 * lively, 0.35),
        roll=rng.normal(0, 0.03) + _drift(rng, time, 0.045 * lively, 0.22),
        sway=np.stack([_drift(rng, time, 0.035 * lively, 0.2), _drift(rng, time, 0.02 * lively, 0.4)], 1),
        blink=blink,
        gaze=gaze,
        brow=_drift(rng, time, 0.025 * lively, 0.6),
        intensity=float(rng.uniform(0.7, 1.0)),
    )
