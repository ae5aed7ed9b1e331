"""What the video VAE learns from: drawn speakers, mostly their mouths, and anything a picture can hold."""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from uniavgen_cli.codecs.video_vae import CELL, VideoVAE, VideoVAEConfig, grouped
from uniavgen_cli.data.avatar import EMOTIONS, MOUTH_PARAMETERS, render, sample_identity, sample_motion
from uniavgen_cli.shapes import SPATIAL_STRIDE, TEMPORAL_STRIDE
from uniavgen_cli.training.trainer import Batch, Stage

NOISE = (
    0.1  # largest deviation of the noise on unit-scaled latents: the decoder learns to bear imperfect ones
)
FACE_WEIGHT = 2.0
MOUTH_WEIGHT = 8.0
# Four frames share a latent frame, and to draw all four alike costs little of any plain error: what moves
# within them weighs more, and is an error of its own, or mouths stand still for four frames and jump.
MOTION_WEIGHT = 12.0
INNER_WEIGHT = 2.0
# A first frame has a latent frame to itself, the others share one by four: so latents count alike.
FIRST_FRAME_WEIGHT = 3.0
ANYTHING_SHARE = 0.15
SIZES = ((128, 128),) * 5 + ((128, 192), (192, 128), (128, 160), (160, 128))
FPS = 16
# A new speaker costs more than many frames of one, so a step takes its clips from the latest speakers.
WINDOW = 256
STEPS_PER_SPEAKER = 4
CROP = 96  # pixels, a square round the mouth that most steps look at: the same face for half of the work
CROP_SHARE = 0.8
SPEAKER_FRAMES = 25
START_CLIPS = 48
STATISTICS_CLIPS = 64
HELD_OUT = 1 << 40  # speakers from here on are beyond any training step
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
Weights = np.ndarray  # (f, h, w) float32


def vae_stage(
    config: VideoVAEConfig,
    *,
    steps: int = 6000,
    lr: float = 6e-4,
    latent_frames: int = 8,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> Stage:
    """The stage that trains a VAE of `config` from nothing; `latent_frames` a step bounds memory and time."""
    torch.manual_seed(seed)
    vae = VideoVAE(config)
    start_linear(vae, START_CLIPS)
    return Stage(
        name="video_vae",
        module=vae,
        batch=lambda step: batch(step, latent_frames=latent_frames, seed=seed),
        loss=loss,
        export=lambda weights, folder: export(weights, config, folder / "video_vae.safetensors"),
        steps=steps,
        lr=lr,
        decay_from=0.3,
        ema=0.998,
        dtype=dtype,
    )


def batch(step: int, *, latent_frames: int = 8, seed: int = 0) -> Batch:
    """Clips of one random shape: `frames` (b, 3, f, h, w) in [-1, 1], loss `weight` (b, 1, f, h, w)."""
    rng = np.random.default_rng((seed, step))
    shape = int(rng.integers(len(SIZES)))
    height, width = SIZES[shape]
    groups = int(rng.choice((1, 2, 3, 4), p=(0.1, 0.4, 0.3, 0.2)))
    num_frames = 1 + TEMPORAL_STRIDE * (groups - 1)
    cropped = rng.random() < CROP_SHARE
    newest = step // STEPS_PER_SPEAKER
    speakers = [i for i in range(max(0, newest - WINDOW), newest + len(SIZES)) if i % len(SIZES) == shape]
    frames, weights = [], []
    for _ in range(max(1, round(latent_frames / groups))):
        if rng.random() < ANYTHING_SHARE:
            clip, weight = anything_clip(rng, num_frames, height, width)
        else:
            clip, weight = speaker_clip(int(rng.choice(speakers)), SPEAKER_FRAMES, height, width)
            start = int(rng.integers(SPEAKER_FRAMES - num_frames + 1))
            mirror = int(rng.choice((-1, 1)))
            clip = clip[start : start + num_frames, :, ::mirror]
            weight = weight[start : start + num_frames, :, ::mirror]
        if cropped:
            rows, columns = _crop(rng, weight)
            clip, weight = clip[:, rows, columns], weight[:, rows, columns]
        frames.append(clip)
        weights.append(weight)
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 4, 1, 2, 3).float()
    importance = torch.from_numpy(np.stack(weights))[:, None]
    importance[:, :, 0] *= FIRST_FRAME_WEIGHT
    return {"frames": pixels / 127.5 - 1, "weight": importance}


def loss(module: torch.nn.Module, batch: Batch, step: int) -> dict[str, Tensor]:
    """Weighted errors of pixels, edges and motion, and the pull of raw latents to unit scale, each (b,)."""
    frames = batch["frames"]
    weight = batch["weight"] * (1 + MOTION_WEIGHT * inner_motion(frames).abs().amax(1, keepdim=True))
    decoded, latents = module(frames, NOISE, torch.Generator().manual_seed(step))
    error = decoded.float() - frames
    dims = (1, 2, 3, 4)
    pixel = (weight * (error.abs() + 2 * error.square())).mean(dims)
    edge = (weight[..., 1:, :] * error.diff(dim=3).abs()).mean(dims)
    edge = edge + (weight[..., 1:] * error.diff(dim=4).abs()).mean(dims)
    inner = (weight * inner_motion(error).abs()).mean(dims)
    variance, mean = torch.var_mean(latents.float(), dim=(0, 2, 3, 4))
    scale = (mean.square() + (variance - 1).square()).mean()
    return {
        "pixel": pixel,
        "edge": 0.5 * edge,
        "inner": INNER_WEIGHT * inner,
        "scale": 0.02 * scale.expand(len(frames)),
    }


def inner_motion(x: Tensor) -> Tensor:
    """How each frame of x (b, c, f, h, w) differs from the mean of the four that share a latent frame."""
    fours = x[:, :, 1:].unflatten(2, (x.shape[2] // TEMPORAL_STRIDE, TEMPORAL_STRIDE))
    return F.pad((fours - fours.mean(3, keepdim=True)).flatten(2, 3), (0, 0, 0, 0, 1, 0))


@torch.no_grad()
def start_linear(vae: VideoVAE, num_clips: int) -> None:
    """Set the linear maps to the principal components of drawn cells: training starts from a picture."""
    cells, importance = [], []
    for i in range(num_clips):
        if i % 4:
            frames, weight = speaker_clip(2 * HELD_OUT + i, 9, 128, 128)
        else:
            frames, weight = anything_clip(np.random.default_rng((HELD_OUT, i)), 9, 128, 128)
        groups = grouped(torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
        cells.append(F.unfold(groups, CELL, stride=CELL).transpose(1, 2).flatten(0, 1))  # (l*cells, c*4*4)
        weights = torch.from_numpy(weight[::TEMPORAL_STRIDE, None])  # (l, 1, h, w)
        importance.append(F.avg_pool2d(weights, SPATIAL_STRIDE).flatten())
    points, mass = torch.cat(cells), torch.cat(importance)[:, None]
    mean = (points * mass).sum(0) / mass.sum()
    rank = vae.config.latent_channels
    _, _, basis = torch.svd_lowrank((points - mean) * mass.sqrt(), q=2 * rank, niter=4)
    basis = basis[:, :rank]
    deviation = ((points - mean) @ basis).std(0)
    read = basis / deviation
    maps = vae.encoder.linear, vae.decoder.linear
    values = ((read.T, -mean @ read), (basis * deviation, mean))
    for linear, (kernel, bias) in zip(maps, values, strict=True):
        linear.load_state_dict({"weight": kernel.reshape(linear.weight.shape), "bias": bias})
    for head in (vae.encoder.head, vae.decoder.head):
        head.weight.mul_(0.1)


def export(weights: dict[str, Tensor], config: VideoVAEConfig, path: Path) -> None:
    """Save the averaged weights in bfloat16, with the latents' mean and deviation measured on speakers."""
    vae = VideoVAE(config)
    vae.load_state_dict(weights)
    mean, std = latent_statistics(vae.eval(), STATISTICS_CLIPS)
    vae.latent_mean.copy_(mean)
    vae.latent_std.copy_(std)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.bfloat16().contiguous() for name, value in vae.state_dict().items()}, path)


@torch.inference_mode()
def latent_statistics(vae: VideoVAE, num_clips: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation (c,) of raw latents over clips of as many unseen speakers."""
    latents = []
    for i in range(num_clips):
        frames, _ = speaker_clip(HELD_OUT + i, 9, 128, 128)
        latents.append(vae.encoder(torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1))
    std, mean = torch.std_mean(torch.cat(latents), dim=(0, 2, 3, 4))
    return mean, std


@torch.no_grad()
def latent_importance(vae: VideoVAE, num_clips: int = 6) -> Tensor:
    """How much a channel of the latents is seen in pixels (c,), about 1: its mean response, to the power 0.7.

    A few channels hold light and colour, most hold details; alike in a loss, they come out blotched.
    """
    response = torch.zeros(vae.config.latent_channels)
    for i in range(num_clips):
        frames, _ = speaker_clip(3 * HELD_OUT + i, 9, 128, 128)
        latents = vae.encode(torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)
        plain = vae.decode(latents)
        generator = torch.Generator().manual_seed(i)
        nudge = 0.5 * torch.randn(latents[:, 0].shape, generator=generator)
        for channel in range(len(response)):
            moved = latents.clone()
            moved[:, channel] += nudge
            response[channel] += (vae.decode(moved) - plain).square().mean()
    importance = response.sqrt() ** 0.7
    return importance / importance.mean()


def _crop(rng: np.random.Generator, weight: Weights) -> tuple[slice, slice]:
    """Rows and columns of a square that holds what weighs most, elsewhere at random."""
    slices = []
    for axis, side in ((1, weight.shape[1]), (2, weight.shape[2])):
        heavy = np.flatnonzero(weight[0].max(axis=2 - axis) == weight[0].max())
        first = max(0, min(heavy[-1] + 1 - CROP, side - CROP))
        last = min(side - CROP, max(heavy[0], 0))
        start = int(rng.integers(min(first, last), max(first, last) + 1))
        slices.append(slice(start, start + CROP))
    return slices[0], slices[1]


@lru_cache(maxsize=WINDOW + len(SIZES))
def speaker_clip(speaker: int, num_frames: int, height: int, width: int) -> tuple[Frames, Weights]:
    """Drawn speaker number `speaker` with any emotion and mouth; weights favour the face, the mouth most."""
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
    weight = np.ones((num_frames, height, width), np.float32)
    for boxes, value in ((drawn.face_boxes, FACE_WEIGHT), (drawn.mouth_boxes, MOUTH_WEIGHT)):
        for i, (x0, y0, x1, y1) in enumerate(np.round(boxes).astype(int)):
            weight[i, max(0, y0 - 1) : max(0, y1 + 1), max(0, x0 - 1) : max(0, x1 + 1)] = value
    return drawn.frames, weight


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


def anything_clip(
    rng: np.random.Generator, num_frames: int, height: int, width: int
) -> tuple[Frames, Weights]:
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
    return frames, np.ones((num_frames, height, width), np.float32)


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
