"""What the small models of `ablations.py` learn from: drawn people of whom the mouth alone moves."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from uniavgen_cli.codecs.video_vae import VideoVAE
from uniavgen_cli.data import cache
from uniavgen_cli.data.dataset import SpeakingClip, sample_clip
from uniavgen_cli.training.joint_stage import ClipBank, Clips


def drawn_clips(
    path: Path, codec: VideoVAE, seed: int, count: int, side: int, patch: Sequence[int]
) -> list[cache.CachedClip]:
    """Drawn clips of 33 frames whose heads are still, kept in the file `path` for all runs."""
    about = {"seed": seed, "count": count, "side": side, "patch": list(patch), "codec": _hash_of(codec)}
    told = path.with_suffix(".json")  # written last: where it is, the rest is whole
    if not told.exists() or json.loads(told.read_text(encoding="utf-8"))["about"] != about:
        tensors, texts = {}, {}
        for index in range(count):
            clip = stilled(sample_clip(seed, index, lengths=(33,), sizes=((side, side),)))
            arrays = {**cache.sound_arrays(clip), **_seen(clip, codec, patch)}
            tensors.update({f"{index}/{name}": value.contiguous() for name, value in arrays.items()})
            texts[str(index)] = cache.texts_of(clip)
        path.parent.mkdir(parents=True, exist_ok=True)
        told.unlink(missing_ok=True)
        save_file(tensors, path)
        told.write_text(json.dumps({"about": about, "texts": texts}), encoding="utf-8")
    texts = json.loads(told.read_text(encoding="utf-8"))["texts"]
    clips = [cache.CachedClip({}, texts[str(index)]) for index in range(count)]
    for key, value in load_file(path).items():
        index, name = key.split("/")
        clips[int(index)].tensors[name] = value
    return clips


def stilled(clip: SpeakingClip) -> SpeakingClip:
    """The clip with head, eyes and brows as they are in its first frame: all that moves is the mouth."""
    moving = {name: value for name, value in vars(clip.motion).items() if isinstance(value, np.ndarray)}
    held = {name: np.repeat(value[:1], len(value), axis=0) for name, value in moving.items()}
    return replace(clip, motion=replace(clip.motion, **held))


@torch.inference_mode()
def _seen(clip: SpeakingClip, codec: VideoVAE, patch: Sequence[int]) -> dict[str, Tensor]:
    """As `cache.picture_arrays` has it, for tokens of any number of cells."""
    drawn, spec = clip.draw(), clip.spec
    rows, columns = spec.latent_height // patch[1], spec.latent_width // patch[2]
    return {
        "latents": codec.encode(cache.frames_of(drawn.frames))[0].transpose(0, 1).half(),
        "face_mask": cache.box_masks(drawn.face_boxes, spec, rows, columns),
        "mouth_mask": cache.box_masks(drawn.mouth_boxes, spec, spec.latent_height, spec.latent_width),
        "opening": torch.from_numpy(np.asarray(drawn.opening, np.float32)),
    }


def _hash_of(codec: VideoVAE) -> str:
    sums = [float(value.double().abs().sum()) for value in codec.state_dict().values()]
    return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]


class InOrder(ClipBank):
    """Clips of one length and size, of which every batch has all, in their order."""

    def draw(self, rng: np.random.Generator, count: int) -> Clips:
        (clips,) = self.groups
        return clips


def pixels_of(codec: VideoVAE, latents: Tensor) -> np.ndarray:
    """Frames (f, h, w, 3) uint8 of latents (c, F, h, w)."""
    pixels = ((codec.decode(latents[None])[0] + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(1, 2, 3, 0).numpy()
