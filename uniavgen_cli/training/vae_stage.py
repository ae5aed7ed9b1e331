"""The video VAE is fitted: principal components of drawn speakers, mouths above all, and of anything else."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from uniavgen_cli.codecs.video_vae import CELL_SIZE, VideoVAE, VideoVAEConfig, cells_of
from uniavgen_cli.data.avatar import EMOTIONS, MOUTH_PARAMETERS, render, sample_identity, sample_motion
from uniavgen_cli.data.cache import frames_of
from uniavgen_cli.shapes import SPATIAL_STRIDE, TEMPORAL_STRIDE
from uniavgen_cli.training.trainer import Batch, Stage

FPS = 16
SIDE = 128
WINDOW = 112  # pixels, a square anywhere in the picture: cells on every grid
NUM_FRAMES = 17
ANYTHING_EVERY = 4  # the other clips are of speakers
MOUTH_MASS = 40.0  # of a cell that is all mouth, beside 1 elsewhere: mouths are small and rare
STATISTICS_CLIPS = 64
HELD_OUT = 1 << 40  # speakers from here on are beyond those that are learnt from
# open, wide, round, teeth, tongue, tuck, press: what speech reaches rarely and a mouth must still survive
EXTREME_MOUTHS = (
    (0, 0, 0, 0, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 1),
    (0, 1, 0, 0, 0, 0, 0),
    (1, 0, 0, 0, 0, 0, 0),
    (1, 1, 0, 1, 0, 0, 0),
    (0.4, 0, 1, 0, 0, 0, 0),
    (0.8, 0, 1, 0, 0, 0, 0),
    (0.3, 1, 0, 1, 0, 0, 0),
    (0.15, 0.6, 0, 1, 0, 0, 0),
    (0.5, 0.2, 0, 0.5, 1, 0, 0),
    (0.2, 0, 0, 0.6, 0, 1, 0),
)

Frames = np.ndarray  # (f, h, w, 3) uint8
Masks = np.ndarray  # (f, h, w) float32, 1 within the mouth's box
Progress = Callable[[str, int, int], None]


def vae_stage(config: VideoVAEConfig, progress: Progress, *, clips: int = 1024, seed: int = 0) -> Stage:
    """The stage of a VAE of `config`: it is fitted to `clips` at once, and no step is left to take."""
    vae = VideoVAE(config)
    fit(vae, clips, seed, progress)

    def nothing(*_: object) -> Batch:
        raise RuntimeError("a fitted VAE takes no steps")

    return Stage(
        name="video_vae",
        module=vae,
        batch=nothing,
        loss=nothing,
        export=lambda weights, folder: export(weights, config, folder / "video_vae.safetensors"),
        steps=0,
        lr=0.0,
    )


@torch.no_grad()
def fit(vae: VideoVAE, num_clips: int, seed: int, progress: Progress) -> None:
    """Set the components to the principal ones of drawn cells, mirrored and on shifted grids.

    Also the latents' mean and deviation, those of speakers.
    """
    products, total, mass = torch.zeros(CELL_SIZE, CELL_SIZE), torch.zeros(CELL_SIZE), 0.0
    for i in range(num_clips):
        progress("drawing clips", i, num_clips)
        rng = np.random.default_rng((seed, i))
        if i % ANYTHING_EVERY:
            frames, mouths = speaker_clip(seed * num_clips + i, NUM_FRAMES, SIDE, SIDE)
        else:
            frames, mouths = anything_clip(rng, NUM_FRAMES, SIDE, SIDE)
        down, right = rng.integers(SIDE - WINDOW, size=2)
        mirror = int(rng.choice((-1, 1)))
        frames, mouths = (
            np.ascontiguousarray(x[:, down : down + WINDOW, right : right + WINDOW][:, :, ::mirror])
            for x in (frames, mouths)
        )
        cells = cells_of(frames_of(frames)).flatten(0, -2)
        seen = torch.from_numpy(mouths[::TEMPORAL_STRIDE, None])
        importance = 1 + MOUTH_MASS * F.avg_pool2d(seen, SPATIAL_STRIDE).flatten()
        weighted = cells * importance[:, None]
        products.addmm_(weighted.T, cells)
        total += weighted.sum(0)
        mass += float(importance.sum())
    progress("drawing clips", num_clips, num_clips)
    centre = total / mass
    basis = torch.linalg.eigh(products / mass - torch.outer(centre, centre)).eigenvectors
    vae.centre.copy_(centre)
    vae.components.copy_(basis[:, -vae.config.latent_channels :].flip(1).T)
    mean, std = latent_statistics(vae, STATISTICS_CLIPS)
    vae.latent_mean.copy_(mean)
    vae.latent_std.copy_(std.clamp(min=1e-4))


def export(weights: dict[str, Tensor], config: VideoVAEConfig, path: Path) -> None:
    """Save the weights in bfloat16."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.bfloat16().contiguous() for name, value in weights.items()}, path)


@torch.inference_mode()
def latent_statistics(vae: VideoVAE, num_clips: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation (c,) of latents not yet normalised, over so many clips of unseen speakers."""
    clips = [frames_of(speaker_clip(HELD_OUT + i, 9, SIDE, SIDE)[0]) for i in range(num_clips)]
    raw = torch.cat([(cells_of(clip) - vae.centre) @ vae.components.T for clip in clips])
    std, mean = torch.std_mean(raw, dim=(0, 1, 2, 3))
    return mean, std


def latent_importance(vae: VideoVAE) -> Tensor:
    """How much a channel of the latents is seen in pixels (c,), about 1: its deviation there.

    A few channels hold light and colour, most hold details; alike in a loss, they come out blotched.
    """
    return vae.latent_std / vae.latent_std.mean()


def speaker_clip(speaker: int, num_frames: int, height: int, width: int) -> tuple[Frames, Masks]:
    """Drawn speaker number `speaker` with any emotion and mouth, and where the mouth is."""
    rng = np.random.default_rng(speaker)
    emotion = str(rng.choice(EMOTIONS))
    drawn = render(
        sample_identity(rng),
        emotion,
        random_mouth(rng, num_frames),
        sample_motion(rng, num_frames, FPS, emotion),
        height,
        width,
    )
    mouths = np.zeros((num_frames, height, width), np.float32)
    for mouth, (x0, y0, x1, y1) in zip(mouths, np.round(drawn.mouth_boxes).astype(int), strict=True):
        mouth[max(0, y0 - 1) : max(0, y1 + 1), max(0, x0 - 1) : max(0, x1 + 1)] = 1
    return drawn.frames, mouths


def random_mouth(rng: np.random.Generator, num_frames: int) -> np.ndarray:
    """Mouth parameters (f, 7) in 0..1: a smooth track, or extremes that hold for some frames and jump."""
    if rng.random() < 0.6:
        spacing = rng.uniform(1.5, 5)
        knots = np.arange(0, num_frames + spacing, spacing)
        values = np.clip(rng.normal(0.3, 0.4, (len(knots), len(MOUTH_PARAMETERS))), 0, 1)
        values[rng.random(len(knots)) < 0.2] = 0
        track = [np.interp(np.arange(num_frames), knots, column) for column in values.T]
        return np.stack(track, axis=1).astype(np.float32)
    held = rng.integers(1, 6)
    poses = np.array(EXTREME_MOUTHS, np.float32)
    return poses[rng.integers(len(poses), size=1 + num_frames // held)].repeat(held, axis=0)[:num_frames]


def anything_clip(rng: np.random.Generator, num_frames: int, height: int, width: int) -> tuple[Frames, Masks]:
    """A scene of overlapping textured shapes seen by a drifting camera, so that photographs survive too."""
    scene = _scene(rng, 224)
    scale = rng.uniform(0.35, 1.0) * 200 / max(height, width)
    angle = rng.uniform(-0.5, 0.5)
    centre = np.array([112.0, 112.0])
    still = rng.random() < 0.3
    drift = np.zeros(2) if still else rng.normal(0, 1.5, 2)
    zoom, turn = (0.0, 0.0) if still else rng.normal(0, 0.006, 2)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for i in range(num_frames):
        s, a = scale * np.exp(zoom * i), angle + turn * i
        rotation = s * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
        offset = centre + drift * i - rotation @ np.array([width / 2, height / 2])
        frames[i] = cv2.warpAffine(
            scene,
            np.column_stack([rotation, offset]),
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REFLECT_101,
        )
    return frames, np.zeros((num_frames, height, width), np.float32)


def _scene(rng: np.random.Generator, side: int) -> Frames:
    """A picture (side, side, 3) somewhat like a photograph: shapes of all sizes that hide each other."""
    scene = _textured(rng, side, np.ones((side, side), np.float32), np.zeros((side, side, 3), np.float32))
    largest = rng.uniform(0.15, 0.5) * side
    for _ in range(int(rng.integers(4, 40))):
        radius = max(2.0, largest * rng.random() ** 2)
        centre = rng.uniform(0, side, 2)
        mask: Frames = np.zeros((side, side), np.uint8)
        draw = _SHAPES[rng.integers(len(_SHAPES))]
        draw(rng, mask, centre, radius)
        if rng.random() < 0.3:
            mask = cv2.GaussianBlur(mask, (0, 0), rng.uniform(0.5, 6))
        scene = _textured(rng, side, mask.astype(np.float32) / 255, scene)
    if rng.random() < 0.3:
        scene = cv2.GaussianBlur(scene, (0, 0), rng.uniform(0.4, 2))
    grain = rng.normal(0, rng.uniform(0, 4), scene.shape[:2]).astype(np.float32)
    scene = (scene - 128) * rng.uniform(0.6, 1.2) + 128 + rng.uniform(-30, 30) + grain[..., None]
    return np.clip(scene, 0, 255).astype(np.uint8)


def _textured(rng: np.random.Generator, side: int, mask: np.ndarray, below: np.ndarray) -> np.ndarray:
    """`below` with a coloured, shaded and textured surface painted through `mask`."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows) == 0:
        return below
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    height, width = mask[box].shape
    grey = rng.uniform(10, 245)
    colour = np.clip(grey + rng.normal(0, 35, 3), 0, 255).astype(np.float32)
    shade = np.zeros((height, width), np.float32)
    amplitude = rng.uniform(0, 45)
    cells = 2
    falloff = rng.uniform(0.4, 0.9)
    while cells <= max(height, width):
        noise = rng.standard_normal((cells, cells)).astype(np.float32)
        shade += amplitude * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
        amplitude *= falloff
        cells *= 2
    if rng.random() < 0.15:  # stripes: cloth, hair, leaves, bars
        y, x = np.mgrid[:height, :width].astype(np.float32)
        direction, period = rng.uniform(0, np.pi), rng.uniform(3, 24)
        wave = np.sin((x * np.cos(direction) + y * np.sin(direction)) * 2 * np.pi / period + shade / 40)
        shade += rng.uniform(5, 50) * wave
    tint = rng.uniform(0.6, 1.2, 3).astype(np.float32)
    cover = mask[box][..., None]
    below[box] += cover * (colour + shade[..., None] * tint - below[box])
    return below


def _ellipse(rng: np.random.Generator, mask: Frames, centre: np.ndarray, radius: float) -> None:
    axes = (round(radius * 16), round(radius * rng.uniform(0.2, 1) * 16))
    middle = (round(centre[0] * 16), round(centre[1] * 16))
    cv2.ellipse(mask, middle, axes, rng.uniform(0, 180), 0, 360, 255, -1, cv2.LINE_AA, 4)


def _polygon(rng: np.random.Generator, mask: Frames, centre: np.ndarray, radius: float) -> None:
    angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
    reach = radius * rng.uniform(0.4, 1.3, len(angles))
    points = centre + np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)


def _strokes(rng: np.random.Generator, mask: Frames, centre: np.ndarray, radius: float) -> None:
    thickness = int(rng.integers(1, 5))
    for _ in range(int(rng.integers(1, 12))):
        points = centre + np.cumsum(rng.normal(0, radius / 3, (5, 2)), axis=0)
        line = [np.round(points * 16).astype(np.int32)]
        cv2.polylines(mask, line, False, 255, thickness, cv2.LINE_AA, 4)


_SHAPES: tuple[Callable[[np.random.Generator, Frames, np.ndarray, float], None], ...] = (
    _ellipse,
    _polygon,
    _polygon,
    _strokes,
)
