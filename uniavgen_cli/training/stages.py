"""A preset's recipe as the stage it describes."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.video_vae import VideoVAEConfig
from uniavgen_cli.codecs.vocoder import VocoderConfig
from uniavgen_cli.config import Preset, weights_folder
from uniavgen_cli.data import cache
from uniavgen_cli.errors import UsageError
from uniavgen_cli.models.state_dict import read_tensors
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.runtime import Runtime, choose
from uniavgen_cli.training.caption_stage import caption_stage
from uniavgen_cli.training.face_stage import face_stage
from uniavgen_cli.training.joint_stage import ClipBank, JointTraining, joint_stage
from uniavgen_cli.training.trainer import Stage
from uniavgen_cli.training.vae_stage import vae_stage
from uniavgen_cli.training.vocoder_stage import vocoder_stage

Progress = Callable[[str, int, int], None]
Recipe = dict[str, Any]
PARTS = ("video_vae", "vocoder", "caption", "face", "joint")


def build_stage(preset: Preset, progress: Progress) -> tuple[Stage, str]:
    """The stage of the preset's recipe, and the device it runs on.

    The joint part draws, speaks and encodes its clips first; they stay in the recipe's `data` folder. Raises
    UsageError for a recipe that no part understands, WeightsError when a part it builds on is missing.
    """
    recipe = dict(preset.train or {})
    part = recipe.pop("part", None)
    runtime = choose(preset.runtime.device, preset.runtime.dtype, preset.runtime.attention)
    if part == "video_vae":
        stage = _stage(preset, vae_stage, recipe, runtime, VideoVAEConfig(**preset.video_vae))
    elif part == "vocoder":
        stage = _stage(preset, vocoder_stage, recipe, runtime, VocoderConfig(**preset.vocoder))
    elif part == "caption":
        stage = _stage(preset, caption_stage, recipe, runtime, CaptionConfig(**preset.caption))
    elif part == "face":
        stage = _stage(preset, face_stage, recipe, runtime)
    elif part == "joint":
        stage = _joint(preset, recipe, runtime, progress)
    else:
        raise UsageError(f"preset {preset.name}: train.part is {part!r}", f"it is one of {', '.join(PARTS)}")
    return stage, runtime.device.value


def _stage(
    preset: Preset, make: Callable[..., Stage], recipe: Recipe, runtime: Runtime, *configs: object
) -> Stage:
    known = inspect.signature(make).parameters
    _check(preset, recipe, known)
    if "dtype" in known:
        recipe["dtype"] = runtime.torch_dtype
    return make(*configs, **recipe)


def _joint(preset: Preset, recipe: Recipe, runtime: Runtime, progress: Progress) -> Stage:
    own = {name: recipe.pop(name, None) for name in ("data", "data_seed", "clips", "workers", "start")}
    _check(preset, recipe, JointTraining.__dataclass_fields__)
    how = JointTraining(**{**recipe, "bf16": runtime.dtype.value == "bfloat16"})
    folder, weights = Path(own["data"]), weights_folder(preset)
    captions = CaptionEncoder.load(weights / "caption.safetensors", CaptionConfig(**preset.caption))
    vae = cache.VAESource(path=weights / "video_vae.safetensors", config=preset.video_vae)
    count = own["clips"]
    for source in (None,) if how.audio_alone else (None, vae):
        for done in cache.build(
            folder, seed=own["data_seed"], first=0, count=count, vae=source, workers=own["workers"]
        ):
            progress("speaking" if source is None else "drawing", done, count)
    torch.manual_seed(how.seed)
    model = UniAVGen(UniAVGenConfig(**preset.model), runtime.attention.value)
    if own["start"]:
        model.load_state_dict(read_tensors(Path(own["start"])))
    return joint_stage(model, ClipBank(cache.load(folder, pictures=not how.audio_alone), captions), how)


def _check(preset: Preset, recipe: Recipe, known: Any) -> None:
    unknown = sorted(set(recipe) - set(known))
    if unknown:
        raise UsageError(
            f"preset {preset.name}: train.{unknown[0]} is unknown", f"there are {', '.join(known)}"
        )
