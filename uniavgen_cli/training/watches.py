"""What the joint model is looked at for while it learns: sample clips, and the mask on unseen faces."""

import logging
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

from uniavgen_cli.codecs import PictureCodec
from uniavgen_cli.codecs.load import load_codecs
from uniavgen_cli.config import Preset, weights_files
from uniavgen_cli.data import cache
from uniavgen_cli.data.dataset import sample_clip
from uniavgen_cli.engine.engine import Engine
from uniavgen_cli.errors import UniAVGenError
from uniavgen_cli.evaluation.mask import mask_iou
from uniavgen_cli.models.uniavgen import UniAVGen
from uniavgen_cli.runtime import choose
from uniavgen_cli.training.joint_stage import (
    MASK_UNTIL,
    ClipBank,
    JointTraining,
    joint_forward,
    joint_stage,
)
from uniavgen_cli.training.ledger import append, cut_after
from uniavgen_cli.training.trainer import Watch

UNSEEN_SEED = 9_000_011  # of drawn people that no training run sees
UNSEEN_CLIPS = 8
MASK_HEADER = ["step", "iou", "iou_by_layer"]

logger = logging.getLogger(__name__)


def drawn_unseen(codec: PictureCodec, side: int, count: int = UNSEEN_CLIPS) -> list[cache.CachedClip]:
    """Drawn people that no training run sees."""
    clips = []
    for index in range(count):
        clip = sample_clip(UNSEEN_SEED, index, lengths=(49,), sizes=((side, side),))
        tensors = {**cache.sound_arrays(clip), **cache.picture_arrays(clip, codec)}
        clips.append(cache.CachedClip(tensors, cache.texts_of(clip)))
    return clips


def mask_watch(bank: ClipBank, how: JointTraining, every: int, device: str) -> Watch:
    """Writes how M and the face's box agree on the unseen clips of `bank` to face-mask.csv.

    Until the mask is no longer taught, and once after.
    """

    def look(module: nn.Module, step: int, folder: Path) -> None:
        if step - every < MASK_UNTIL * how.steps:
            layers = face_mask_iou(module, bank, device)
            row = [step, f"{layers.mean():.4f}", " ".join(f"{iou:.4f}" for iou in layers)]
            _add_row(folder / "face-mask.csv", MASK_HEADER, row)

    return Watch(every, look)


@torch.inference_mode()
def face_mask_iou(module: nn.Module, bank: ClipBank, device: str = "cpu", batches: int = 4) -> np.ndarray:
    """The mean IoU of M above 0.5 and the face's box over the bank's clips, layer by layer (layers,).

    The clips are noisy as in training, and nothing of them is given but the first picture.
    """
    assert isinstance(module, UniAVGen)
    how = JointTraining(steps=1, batch_size=2, odds={"generate": 1.0})
    stage = joint_stage(module, bank, how)
    found = []
    for step in range(batches):
        batch = {
            key: value.to(device) if isinstance(value, torch.Tensor) else value
            for key, value in stage.batch(step).items()
        }
        made, _ = joint_forward(module, batch)
        masks = made.face_mask_logits.float().sigmoid()  # (b, layers, F, n)
        found.append(mask_iou(masks, batch["face_mask"][:, None]).mean((0, 2)))
    return torch.stack(found).mean(0).cpu().numpy()


def sample_watch(recipe: Preset, clip: cache.CachedClip, every: int, *, steps: int | None = None) -> Watch:
    """Writes sample-STEP.mp4: the first picture of a training clip says the clip's text.

    Made as `uniavgen generate` makes it, always from the same noise. A clip that can't be made is told of,
    and the run goes on.
    """
    engines: list[Engine] = []

    def look(module: nn.Module, step: int, folder: Path) -> None:
        assert isinstance(module, UniAVGen)
        try:
            if not engines:
                engines.append(_engine(recipe, module))
            face = folder / "sample-face.png"
            if not face.exists():
                _write_first_picture(engines[0].video_vae, clip, face)
            made = engines[0].generate(
                prompt=clip.texts["caption"], speech=clip.texts["text"], face=face, seed=0, steps=steps
            )
            made.save(folder / f"sample-{step:06d}.mp4", overwrite=True)
        except UniAVGenError as error:
            logger.warning("no sample clip at step %d: %s", step, error)

    return Watch(every, look)


def _engine(recipe: Preset, module: UniAVGen) -> Engine:
    """An engine around the model that trains, with the codecs of the preset's weights."""
    runtime = choose(recipe.runtime.device, recipe.runtime.dtype, "sdpa")
    device = runtime.device.value
    dtype = runtime.torch_dtype if device != "cpu" else torch.float32
    codecs = load_codecs(recipe, weights_files(recipe), device=device, dtype=dtype, captions_device=device)
    return Engine(recipe, runtime, model=module, weights_hash="training", **codecs)


@torch.inference_mode()
def _write_first_picture(codec: PictureCodec, clip: cache.CachedClip, path: Path) -> None:
    device = next(codec.parameters()).device
    latents = clip.tensors["latents"][:1].float().transpose(0, 1)[None]  # 1 c 1 h w
    pixels = (codec.decode(latents.to(device))[0, :, 0].float() + 1) * 127.5
    picture = pixels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    cv2.imwrite(str(path), picture[:, :, ::-1])


def _add_row(path: Path, header: list[str], row: list[object]) -> None:
    """A row of a step, in place of those that a run which was cut wrote for it and later steps."""
    cut_after(path, int(str(row[0])) - 1)
    append(path, [row], header)
