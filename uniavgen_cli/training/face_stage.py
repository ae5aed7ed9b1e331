"""What the detector of drawn faces learns from: avatars near and far, alone and in groups, and no one."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from uniavgen_cli.data.avatar import EMOTIONS, MOUTH_PARAMETERS, render, sample_identity, sample_motion
from uniavgen_cli.media.drawn_faces import GROUPS, LONG_SIDE, RARITY, STRIDE
from uniavgen_cli.training.trainer import Batch, Stage

MOST_FACES = 4
_DRAWN_AT = ((128, 128), (160, 160), (128, 224), (208, 128))  # heights and widths of the pool's frames

Drawing = tuple[np.ndarray, np.ndarray]  # a frame (h, w, 3) uint8 and its face's box (4,)


class FaceDetector(nn.Module):
    """Frames (b, 3, h, w) in [-1, 1] -> logits (b, h/8, w/8) and boxes (b, h/8, w/8, 4).

    As it learns; `media/drawn_faces.py` computes the same from the weights, for pictures that are given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 16, stride=2), _conv(16, 24, stride=2), _conv(24, 40, stride=2))
        self.down = _conv(40, 56, stride=2)
        self.context = nn.ModuleList([_conv(56, 56, dilation=dilation) for dilation in (1, 2, 4)])
        self.lateral = nn.Conv2d(40, 56, 1)
        self.merge = _conv(56, 40)
        self.head = nn.Conv2d(40, 5, 1)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.stem(frames)  # b 40 h/8 w/8
        coarse = self.down(fine)  # b 56 h/16 w/16
        for layer in self.context:
            coarse = coarse + layer(coarse)
        merged = self.merge(self.lateral(fine) + F.interpolate(coarse, scale_factor=2.0))
        logits, distances = self.head(merged).split([1, 4], dim=1)
        logits = logits - RARITY
        reach = (
            2 * STRIDE * distances.clamp(-4, 4).exp()
        )  # from the cell's middle to left, top, right, bottom
        left, top, right, bottom = reach.unbind(1)  # b h/8 w/8
        rows, columns = cell_middles(logits.shape[2], logits.shape[3], frames.device)
        boxes = torch.stack([columns - left, rows - top, columns + right, rows + bottom], dim=-1)
        return logits[:, 0], boxes


def cell_middles(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixel rows (h, 1) and columns (1, w) of the middles of the cells."""
    rows = (torch.arange(height, device=device) + 0.5) * STRIDE
    columns = (torch.arange(width, device=device) + 0.5) * STRIDE
    return rows[:, None], columns[None, :]


def face_stage(
    *, people: int = 600, steps: int = 1500, lr: float = 2e-3, batch_size: int = 16, seed: int = 0
) -> Stage:
    """The stage that trains the face detector on `people` avatars drawn once and laid out anew each step."""
    torch.manual_seed(seed)
    pool = cache(lambda: draw_pool(people, seed))
    return Stage(
        name="face",
        module=FaceDetector(),
        batch=lambda step: batch(pool(), np.random.default_rng((seed, step)), batch_size),
        loss=loss,
        export=lambda weights, folder: export(weights, folder / "face_detector.safetensors"),
        steps=steps,
        lr=lr,
        ema=0.99,
        weight_decay=0.05,
    )


def draw_pool(people: int, seed: int, frames_each: int = 2) -> list[Drawing]:
    """Frames of `people` avatars with their face boxes."""
    drawings = []
    for number in range(people):
        rng = np.random.default_rng((seed, number, 7))
        emotion = str(rng.choice(EMOTIONS))
        height, width = _DRAWN_AT[number % len(_DRAWN_AT)]
        motion = sample_motion(rng, frames_each, 1.0, emotion)
        mouth = rng.random((frames_each, len(MOUTH_PARAMETERS))) ** 2
        drawn = render(sample_identity(rng), emotion, mouth, motion, height=height, width=width)
        drawings += list(zip(drawn.frames, drawn.face_boxes, strict=True))
    return drawings


def batch(pool: list[Drawing], rng: np.random.Generator, batch_size: int) -> Batch:
    """`frames` (b, 3, 160, 160) in [-1, 1] and `boxes` (b, 4, 4) in pixels, empty ones all zero."""
    frames, boxes = [], []
    for _ in range(batch_size):
        picture, found = _picture(pool, rng)
        frames.append(_disturbed(picture, rng))
        boxes.append(found + [np.zeros(4)] * (MOST_FACES - len(found)))
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return {"frames": pixels, "boxes": torch.tensor(np.array(boxes), dtype=torch.float32)}


def loss(module: nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
    """Focal loss (b,) on where faces are (CornerNet's, arXiv 1808.01244) and 1 - GIoU (b,) of their boxes."""
    logits, boxes = module(batch["frames"])
    truth = batch["boxes"]  # b n 4
    rows, columns = cell_middles(logits.shape[1], logits.shape[2], logits.device)
    middle_x, middle_y = truth[..., [0, 2]].mean(-1), truth[..., [1, 3]].mean(-1)  # b n
    sides = truth[..., 2:] - truth[..., :2]  # b n 2
    there = sides[..., 0] > 0  # b n
    spread = 0.12 * sides.clamp(min=STRIDE * 4)
    far_x = (columns[None, None] - middle_x[..., None, None]) / spread[..., 0, None, None]  # b n 1 w
    far_y = (rows[None, None] - middle_y[..., None, None]) / spread[..., 1, None, None]  # b n h 1
    closeness = torch.exp(-0.5 * (far_x**2 + far_y**2)) * there[..., None, None]  # b n h w
    heat, owner = closeness.max(dim=1)  # b h w
    # the cell nearest a face's middle is a full positive, wherever in the cell the middle lies
    full = ((columns[None, None] - middle_x[..., None, None]).abs() <= STRIDE / 2) & (
        (rows[None, None] - middle_y[..., None, None]).abs() <= STRIDE / 2
    )
    positive = (full & there[..., None, None]).any(1)  # b h w
    chance = logits.sigmoid()
    hit = positive * (1 - chance) ** 2 * F.softplus(-logits)
    miss = ~positive * (1 - heat) ** 4 * chance**2 * F.softplus(logits)
    faces = there.sum(1).clamp(min=1)
    where = (hit + miss).sum((1, 2)) / faces

    near = (heat > 0.4).float()  # the cells whose boxes may be read
    own = truth.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4)).reshape(boxes.shape)
    fit = (near * (1 - _giou(boxes, own))).sum((1, 2)) / near.sum((1, 2)).clamp(min=1)
    return {"where": where, "box": fit}


def export(weights: dict[str, Tensor], path: Path) -> None:
    """Save the averaged weights in float16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.half().contiguous().cpu() for name, value in weights.items()}, path)


def _giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised intersection over union of boxes (..., 4) (arXiv 1902.09630)."""

    def area(corner: Tensor, far: Tensor) -> Tensor:
        return (far - corner).clamp(min=0).prod(-1)

    shared = area(torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:]))
    union = area(one[..., :2], one[..., 2:]) + area(other[..., :2], other[..., 2:]) - shared
    around = area(torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:]))
    return shared / union.clamp(min=1e-6) - (around - union) / around.clamp(min=1e-6)


# ---- pictures --------------------------------------------------------------------------------------------


def _picture(pool: list[Drawing], rng: np.random.Generator) -> tuple[np.ndarray, list[np.ndarray]]:
    """A picture (160, 160, 3) and the boxes in it: one avatar, several side by side, or none."""
    kind = rng.random()
    if kind < 0.3:
        return _NOBODY[rng.integers(len(_NOBODY))](pool, rng), []
    rows, columns = (1, 1) if kind < 0.75 else [(1, 2), (2, 1), (2, 2)][rng.integers(3)]
    height, width = LONG_SIDE // rows, LONG_SIDE // columns
    picture = np.zeros((LONG_SIDE, LONG_SIDE, 3), np.uint8)
    boxes = []
    for row in range(rows):
        for column in range(columns):
            part, box = _placed(pool, rng, height, width)
            top, left = row * height, column * width
            picture[top : top + height, left : left + width] = part
            boxes.append(box + (left, top, left, top))
    return picture, boxes


def _placed(pool: list[Drawing], rng: np.random.Generator, height: int, width: int) -> Drawing:
    """One avatar, its face 20 px to nine tenths of the picture high and wholly inside."""
    frame, (x0, y0, x1, y1) = pool[rng.integers(len(pool))]
    if rng.random() < 0.5:
        frame, x0, x1 = frame[:, ::-1], frame.shape[1] - x1, frame.shape[1] - x0
    low, high = np.log(20), np.log(0.9 * min(height, width))
    stretch = float(np.exp(rng.uniform(-0.12, 0.12)))
    scale_y = float(np.exp(rng.uniform(low, high))) / (y1 - y0)
    scale_x = scale_y * stretch
    face_height, face_width = (y1 - y0) * scale_y, (x1 - x0) * scale_x
    left = rng.uniform(0, max(1.0, width - face_width))
    top = rng.uniform(0, max(1.0, height - face_height))
    matrix = np.array([[scale_x, 0, left - x0 * scale_x], [0, scale_y, top - y0 * scale_y]])
    border = (cv2.BORDER_REPLICATE, cv2.BORDER_CONSTANT)[int(rng.random() < 0.3)]
    colour = tuple(int(c) for c in rng.integers(0, 256, 3))
    method = cv2.INTER_AREA if scale_y < 0.7 else cv2.INTER_LINEAR
    part = cv2.warpAffine(frame, matrix, (width, height), flags=method, borderMode=border, borderValue=colour)
    return part, np.array([left, top, left + face_width, top + face_height])


def _faceless(pool: list[Drawing], rng: np.random.Generator) -> np.ndarray:
    """An avatar whose face is a smear of its own colours: hair, ears and collar must not be enough."""
    index = int(rng.integers(len(pool)))
    frame, (x0, y0, x1, y1) = pool[index]
    frame = frame.copy()
    inside = frame[int(y0) : int(y1), int(x0) : int(x1)]
    small = cv2.resize(inside, (2, 2) if rng.random() < 0.5 else (1, 1), interpolation=cv2.INTER_AREA)
    frame[int(y0) : int(y1), int(x0) : int(x1)] = cv2.resize(small, inside.shape[1::-1])
    return _placed([(frame, pool[index][1])], rng, LONG_SIDE, LONG_SIDE)[0]


def _torn(pool: list[Drawing], rng: np.random.Generator) -> np.ndarray:
    """Snippets of many avatars in disorder, each a third of a face or less."""
    picture = np.zeros((LONG_SIDE, LONG_SIDE, 3), np.uint8)
    piece = 16 if rng.random() < 0.5 else 20
    for top in range(0, LONG_SIDE, piece):
        for left in range(0, LONG_SIDE, piece):
            frame, _ = pool[rng.integers(len(pool))]
            y, x = rng.integers(frame.shape[0] - piece), rng.integers(frame.shape[1] - piece)
            picture[top : top + piece, left : left + piece] = frame[y : y + piece, x : x + piece]
    return picture


def _aside(pool: list[Drawing], rng: np.random.Generator) -> np.ndarray:
    """What is beside, below or above a face, enlarged."""
    frame, (x0, y0, x1, y1) = pool[rng.integers(len(pool))]
    height, width, _ = frame.shape
    parts = [frame[int(y1) + 2 :], frame[: int(y0) - 2], frame[:, : int(x0) - 2], frame[:, int(x1) + 2 :]]
    parts = [part for part in parts if min(part.shape[:2]) >= 8] or [np.full((8, 8, 3), 128, np.uint8)]
    return cv2.resize(parts[rng.integers(len(parts))], (LONG_SIDE, LONG_SIDE), interpolation=cv2.INTER_LINEAR)


def _shapes(pool: list[Drawing], rng: np.random.Generator) -> np.ndarray:
    """Cloudy colours with discs, boxes and lines: rooms and things, roughly."""
    picture = np.zeros((LONG_SIDE, LONG_SIDE, 3), np.float32)
    for cells in (2, 5, 10, 20, 40):
        clouds = rng.normal(0, 1, (cells, cells, 3)) * rng.choice([(1, 1, 1), (1, 0.6, 0.3)])
        picture += (
            cv2.resize(clouds.astype(np.float32), (LONG_SIDE, LONG_SIDE))
            * float(rng.uniform(5, 60))
            / cells**0.5
        )
    picture = np.clip(picture + rng.uniform(20, 235, 3), 0, 255).astype(np.uint8)
    for _ in range(rng.integers(0, 14)):
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        x, y, a, b = (int(v) for v in rng.integers(0, LONG_SIDE, 4))
        filled = int(rng.choice([-1, 1, 2, 3]))
        shape = rng.integers(3)
        if shape == 0:
            axes = (2 + a // 5, 2 + b // 5)
            cv2.ellipse(picture, (x, y), axes, float(a), 0, 360, colour, filled, cv2.LINE_AA)
        elif shape == 1:
            cv2.rectangle(picture, (x, y), (x + a // 2, y + b // 2), colour, filled)
        else:
            cv2.line(picture, (x, y), (a, b), colour, 1 + a % 6, cv2.LINE_AA)
    return picture


_NOBODY: tuple[Callable[[list[Drawing], np.random.Generator], np.ndarray], ...] = (
    _faceless,
    _torn,
    _aside,
    _shapes,
)


def _disturbed(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Other light, less colour, blur, noise and JPEG blocks, each some of the time."""
    values = (picture - 128.0) * rng.uniform(0.6, 1.3) + 128 + rng.uniform(-35, 35) + rng.uniform(-15, 15, 3)
    if rng.random() < 0.1:
        values[:] = values.mean(-1, keepdims=True)
    if rng.random() < 0.25:
        values[:] = cv2.GaussianBlur(values, (0, 0), float(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.3:
        values += rng.normal(0, rng.uniform(2, 12), values.shape)
    picture = np.clip(values, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))])
        picture[:] = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    return picture


def _conv(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, outputs), nn.SiLU())
