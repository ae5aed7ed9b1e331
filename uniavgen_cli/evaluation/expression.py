"""A probe that reads the emotion of a drawn face from close by.

One small network over the square around the face, which the opening reader's locator finds; trained here in
a few minutes on people that no model of ours trains on, worn as decoded frames are.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen_cli.data.avatar import EMOTIONS
from uniavgen_cli.evaluation.opening import Faces, OpeningReader, drawn_faces, worn
from uniavgen_cli.evaluation.probes import Report, kept, taught, unheard

SEED = 7_000_093  # apart from the seeds of model training
SIDE = 64  # pixels of the square that is read
_SHARE = 1.1  # of the face's height, which the square covers
_RISE = 0.25  # of the face's height, by which its middle lies above the mouth


class ExpressionProbe(nn.Module):
    """Squares around faces (n, 3, 64, 64) in [-1, 1] to logits of emotions (n, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_layer(3, 24, 2), *_layer(24, 32, 1), *_layer(32, 48, 2), *_layer(48, 64, 2), nn.Flatten()
        )
        self.head = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(64 * (SIDE // 8) ** 2, 96), nn.GELU(), nn.Linear(96, len(EMOTIONS))
        )

    def forward(self, squares: Tensor) -> Tensor:
        return self.head(self.layers(squares))

    @torch.inference_mode()
    def read(self, frames: np.ndarray, locator: OpeningReader) -> np.ndarray:
        """The chances of emotions (n, 7) in frames (n, h, w, 3) uint8 of one drawn face."""
        centres, heights = locator.locate(frames)
        squares = [face_square(*where) for where in zip(frames, centres, heights, strict=True)]
        return self(_pixels(squares)).softmax(-1).numpy()


def _layer(before: int, after: int, stride: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(before, after, 3, stride, padding=1), nn.GroupNorm(8, after), nn.GELU()


def face_square(frame: np.ndarray, mouth: np.ndarray, face_height: float) -> np.ndarray:
    """The square around the face (SIDE, SIDE, 3) whose mouth is at x, y; all in pixels of the frame."""
    zoom = SIDE / (_SHARE * max(face_height, 8.0))
    middle = np.asarray(mouth) - [0.0, _RISE * face_height]
    shift = SIDE / 2 - zoom * (middle - 0.5) - 0.5
    move = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    return cv2.warpAffine(frame, move, (SIDE, SIDE), borderMode=cv2.BORDER_REPLICATE)


def train_expression_probe(
    *,
    steps: int = 900,
    num_people: int = 1500,
    batch_size: int = 48,
    seed: int = SEED,
    report: Report = unheard,
) -> ExpressionProbe:
    """A probe trained on `num_people` drawn for it; about five minutes on one core."""
    people = [drawn_faces(seed, number, num_frames=4) for number in range(num_people)]
    return taught(
        ExpressionProbe,
        lambda probe, rng: _loss(probe, people, batch_size, rng),
        steps=steps,
        seeds=(seed, num_people),
        weight_decay=0.1,
        report=report,
    )


def load_expression_probe(path: Path) -> ExpressionProbe:
    """The probe kept at `path`; trained and kept there first when the file is missing."""
    return kept(path, ExpressionProbe, train_expression_probe)


def _loss(probe: ExpressionProbe, people: list[Faces], batch_size: int, rng: np.random.Generator) -> Tensor:
    squares, truths = [], []
    for _ in range(batch_size):
        faces = people[rng.integers(len(people))]
        i = rng.integers(len(faces.frames))
        height = faces.heights[i] * np.exp(rng.normal(0, 0.05))
        mouth = faces.centres[i] + rng.normal(0, 0.025, 2) * height  # as the locator errs
        square = face_square(worn(faces.frames[i], rng), mouth, height)
        squares.append(square[:, ::-1] if rng.random() < 0.5 else square)
        truths.append(EMOTIONS.index(faces.emotion))
    return F.cross_entropy(probe(_pixels(squares)), torch.tensor(truths), label_smoothing=0.05)


def _pixels(squares: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2).float() / 127.5 - 1  # n c h w
