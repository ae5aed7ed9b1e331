"""How far the mouth of a drawn face stands open, read from the pixels of a clip and nothing else.

Two small networks: one finds the mouth in each frame, the other looks at it closely, puts the place right and
reads the gap between the lips. They are trained here in under two minutes, on speakers that no model of
ours trains on, worn as decoded frames are.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen_cli.data.avatar import EMOTIONS, MOUTH_PARAMETERS, render, sample_identity, sample_motion
from uniavgen_cli.data.voice import mouth_track, sample_sentence, time_phonemes
from uniavgen_cli.evaluation.probes import Report, kept, taught, unheard

SEED = 7_000_033  # apart from the seeds of model training
LOCATE_SIDE = 64  # pixels of the short side of the picture in which the mouth is looked for
READ_SIDE = 32  # pixels of the square around the mouth that is read
READ_SHARE = 0.55  # of the face's height, which that square covers
OPENING_SCALE = 0.1  # a wide open mouth, and
SHIFT_SCALE = 0.05  # a place far off, in face heights: networks like values around 1


class OpeningReader(nn.Module):
    """Frames (n, h, w, 3) uint8 of one drawn face to the opening of its mouth, (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.locator = Locator()
        self.close = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.GELU(),
            *_layer(16, 24, stride=2),
            *_layer(24, 32, stride=2),
            nn.AdaptiveAvgPool2d((8, 4)),  # heights matter more than widths
            nn.Flatten(),
            nn.Linear(32 * 8 * 4, 32),
            nn.GELU(),
            nn.Linear(32, 3),  # the gap, and how far right and down of the square's middle the mouth is
        )

    @torch.inference_mode()
    def read(self, frames: np.ndarray) -> np.ndarray:
        """The visible gap between the lips in each frame as a share of the face's height, float32 (n,).

        From 0 (shut) to about 0.2 (as open as a drawn mouth goes); neither end is better. Frames are
        (n, h, w, 3) uint8 RGB of any size, in order, with one drawn face that moves slowly.
        """
        centres, heights = self.locate(frames)
        away = self._look(frames, centres, heights)[:, 1:] * (SHIFT_SCALE * heights[:, None])
        return self._look(frames, _steady(centres + away), heights)[:, 0] * OPENING_SCALE

    def _look(self, frames: np.ndarray, centres: np.ndarray, heights: np.ndarray) -> np.ndarray:
        """What `close` makes of the squares at these places, (n, 3)."""
        crops = np.stack([_crop(*where) for where in zip(frames, centres, heights, strict=True)])
        return torch.cat([self.close(part) for part in _pixels(crops).split(64)]).numpy()

    @torch.inference_mode()
    def locate(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mouth's centre x, y (n, 2) and the face's height (n,), in pixels, steadied over the clip."""
        height, width = frames.shape[1:3]
        scale = LOCATE_SIDE / min(height, width)
        small = [
            cv2.resize(frame, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
            for frame in frames
        ]
        parts = [self.locator(part) for part in _pixels(np.stack(small)).split(64)]
        centres = torch.cat([centre for centre, _ in parts]).numpy() / scale
        heights = torch.cat([size for _, size in parts]).numpy() / scale
        return _steady(centres), np.full(len(frames), np.median(heights))


class Locator(nn.Module):
    """Pictures (b, 3, h, w) to the mouth's centre (b, 2) and the face's height (b,), in pixels of them."""

    def __init__(self, dim: int = 20) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_layer(3, 12, stride=2),
            *_layer(12, dim, stride=2),
            *_layer(dim, dim),
            *_layer(dim, dim, dilation=2),
            *_layer(dim, dim, dilation=4),
        )
        self.head = nn.Conv2d(dim, 2, 1)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        heat, size = self.head(self.layers(pictures)).unbind(1)  # (b, h/4, w/4) each
        rows, columns = heat.shape[1:]
        share = heat.flatten(1).softmax(-1).unflatten(1, (rows, columns))
        x = (share.sum(1) * (torch.arange(columns) + 0.5)).sum(-1) * 4
        y = (share.sum(2) * (torch.arange(rows) + 0.5)).sum(-1) * 4
        face = (share * size).sum((1, 2)).exp() * LOCATE_SIDE / 2  # half the picture's height is usual
        return torch.stack([x, y], -1), face


def _layer(before: int, after: int, stride: int = 1, dilation: int = 1) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(before, after, 3, stride, padding=dilation, dilation=dilation)
    return convolution, nn.GroupNorm(4, after), nn.GELU()


@dataclass(frozen=True)
class Faces:
    """Frames (n, 128, 128, 3) uint8; mouths (n, 2), face heights (n,) in pixels; openings (n,); emotion."""

    frames: np.ndarray
    centres: np.ndarray
    heights: np.ndarray
    opening: np.ndarray
    emotion: str


def drawn_faces(seed: int, speaker: int, num_frames: int = 8) -> Faces:
    """Frames of speaker `speaker` of a seed, some seconds of a sentence apart, or with mouths of any kind."""
    rng = np.random.default_rng([seed, speaker])
    identity, emotion = sample_identity(rng), str(rng.choice(EMOTIONS))
    timed = time_phonemes(sample_sentence(rng))
    fps = num_frames / timed[-1].end_s  # so that the frames cover the sentence
    mouth = mouth_track(timed, num_frames, fps)
    anyhow = rng.random(num_frames) < 0.3
    mouth[anyhow] = rng.random((int(anyhow.sum()), len(MOUTH_PARAMETERS))) ** 2
    drawn = render(identity, emotion, mouth, sample_motion(rng, num_frames, fps, emotion))
    x0, y0, x1, y1 = drawn.mouth_boxes.T
    return Faces(
        frames=drawn.frames,
        centres=np.stack([x0 + x1, y0 + y1], -1) / 2,
        heights=drawn.face_boxes[:, 3] - drawn.face_boxes[:, 1],
        opening=drawn.opening.astype(np.float32),
        emotion=emotion,
    )


def train_opening_reader(
    *,
    steps: int = 700,
    num_speakers: int = 400,
    batch_size: int = 48,
    seed: int = SEED,
    report: Report = unheard,
) -> OpeningReader:
    """A reader trained on `num_speakers` drawn for it; under two minutes on one core."""
    speakers = [drawn_faces(seed, speaker) for speaker in range(num_speakers)]
    return taught(
        OpeningReader,
        lambda reader, rng: _loss(reader, speakers, batch_size, rng),
        steps=steps,
        seeds=(seed, num_speakers),
        lr=4e-3,
        warmup=30,
        weight_decay=0.01,
        report=report,
    )


def load_opening_reader(path: Path) -> OpeningReader:
    """The reader kept at `path`; trained and kept there first when the file is missing."""
    return kept(path, OpeningReader, train_opening_reader)


def _loss(reader: OpeningReader, speakers: list[Faces], batch_size: int, rng: np.random.Generator) -> Tensor:
    """Errors of place, size and opening, all in units in which a good reading is off by about a tenth."""
    pictures, places, crops, truths = [], [], [], []
    for _ in range(batch_size):
        faces = speakers[rng.integers(len(speakers))]
        i = rng.integers(len(faces.frames))
        frame = worn(faces.frames[i], rng)
        if rng.random() < 0.7:  # of the rest, the place alone is asked for: the opening is what is hard
            height = faces.heights[i] * np.exp(rng.normal(0, 0.06))
            away = rng.normal(0, rng.uniform(0, 0.06), 2)
            crop = _crop(frame, faces.centres[i] - away * height, height)
            mirrored = rng.random() < 0.5
            crops.append(crop[:, ::-1] if mirrored else crop)
            away[0] *= -1 if mirrored else 1
            truths.append([faces.opening[i] / OPENING_SCALE, *(away / SHIFT_SCALE)])
        if rng.random() < 0.5:
            picture, move, zoom = _elsewhere(frame, rng)
            pictures.append(picture)
            places.append([*(move @ [*faces.centres[i], 1.0]), faces.heights[i] * zoom])
    place = torch.tensor(np.array(places), dtype=torch.float32)
    centre, height = reader.locator(_pixels(np.stack(pictures)))
    seen = reader.close(_pixels(np.stack(crops)))
    truth = torch.tensor(np.array(truths), dtype=torch.float32)
    return (
        F.smooth_l1_loss(centre / 4, place[:, :2] / 4, beta=0.2)
        + F.smooth_l1_loss((height / place[:, 2]).log() * 2, torch.zeros_like(height), beta=0.2)
        + F.smooth_l1_loss(seen[:, 0], truth[:, 0], beta=0.2) * 2
        + F.smooth_l1_loss(seen[:, 1:], truth[:, 1:], beta=0.2)
    )


def worn(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A frame as a codec leaves it: often blurred, coarse, noisy or blocky, in a slightly other light."""
    if rng.random() < 0.3:
        small = cv2.resize(frame, None, fx=(s := rng.uniform(0.45, 0.9)), fy=s, interpolation=cv2.INTER_AREA)
        frame = cv2.resize(small, frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        frame = cv2.GaussianBlur(frame, (0, 0), rng.uniform(0.3, 1.3))
    if rng.random() < 0.25:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 80))]
        frame = np.asarray(cv2.imdecode(cv2.imencode(".jpg", frame, quality)[1], cv2.IMREAD_COLOR))
    light = frame.astype(np.float32) * rng.normal(1, 0.06) + rng.normal(0, 5)
    if rng.random() < 0.5:
        light += rng.normal(0, rng.uniform(0, 10), frame.shape).astype(np.float32)
    return np.clip(light, 0, 255).astype(np.uint8)


def _elsewhere(frame: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """The frame at LOCATE_SIDE, moved, zoomed and perhaps mirrored: the picture, the (2, 3) map, the zoom."""
    height, width = frame.shape[:2]
    zoom = LOCATE_SIDE / min(height, width) * np.exp(rng.normal(0, 0.12))
    across = -zoom if rng.random() < 0.5 else zoom
    shift = LOCATE_SIDE / 2 - np.array([across * width, zoom * height]) / 2 + rng.normal(0, 3, 2)
    move = np.array([[across, 0, shift[0]], [0, zoom, shift[1]]])
    # where pixels have their middle at a half, as places here do and OpenCV's don't
    whole = move.copy()
    whole[:, 2] += move[:, :2] @ [0.5, 0.5] - 0.5
    size = (LOCATE_SIDE, LOCATE_SIDE)
    frame = cv2.GaussianBlur(frame, (0, 0), 0.6)  # as much as halving the size of a picture blurs it
    return cv2.warpAffine(frame, whole, size, borderMode=cv2.BORDER_REPLICATE), move, float(zoom)


def _crop(frame: np.ndarray, centre: np.ndarray, face_height: float) -> np.ndarray:
    """The square around the mouth (READ_SIDE, READ_SIDE, 3)."""
    zoom = READ_SIDE / (READ_SHARE * max(face_height, 8.0))
    shift = READ_SIDE / 2 - zoom * (np.asarray(centre) - 0.5) - 0.5
    move = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    return cv2.warpAffine(frame, move, (READ_SIDE, READ_SIDE), borderMode=cv2.BORDER_REPLICATE)


def _steady(centres: np.ndarray, around: int = 2) -> np.ndarray:
    """The median over five frames, so that one frame misread does not move the square."""
    padded = np.pad(centres, ((around, around), (0, 0)), mode="edge")
    return np.median(np.stack([padded[i : i + len(centres)] for i in range(2 * around + 1)]), axis=0)


def _pixels(pictures: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1  # b c h w
