"""From a preset's recipe to the stage that trains it: one line a part."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.video_vae import VideoVAEConfig
from uniavgen_cli.codecs.vocoder import VocoderConfig
from uniavgen_cli.config import Preset, weights_folder
from uniavgen_cli.data import cache
from uniavgen_cli.errors import UsageError, WeightsError
from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.runtime import choose
from uniavgen_cli.training.caption_stage import caption_stage
from uniavgen_cli.training.face_stage import face_stage
from uniavgen_cli.training.joint_stage import ClipBank, JointTraining, joint_stage
from uniavgen_cli.training.trainer import Stage
from uniavgen_cli.training.vae_stage import vae_stage
from uniavgen_cli.training.vocoder_stage import vocoder_stage

Progress = Callable[[str, int, int], None]


def build_stage(recipe: Preset, folder: Path, progress: Progress) -> Stage:
    """The stage of a recipe, its data made first; raises UsageError for an unknown part or key."""
    how = dict(recipe.train or {})
    part = how.pop("part", None)
    builders: dict[str, Callable[..., Stage]] = {
        "video_vae": lambda **keys: vae_stage(VideoVAEConfig(**recipe.video_vae), **keys),
        "vocoder": lambda **keys: vocoder_stage(VocoderConfig(**recipe.vocoder), **keys),
        "caption": lambda **keys: caption_stage(CaptionConfig(**recipe.caption), **keys),
        "face": face_stage,
        "joint": lambda **keys: _joint(recipe, folder, progress, **keys),
    }
    if part not in builders:
        raise UsageError(
            f"train.part {part!r} is no part of the model", f"it is one of {', '.join(builders)}"
        )
    try:
        return builders[part](**how)
    except TypeError as error:
        raise UsageError(f"the recipe {recipe.name} does not fit the part {part}: {error}") from error


def training_device(recipe: Preset) -> str:
    """Where the recipe trains: its runtime.device, or the first GPU there is."""
    return choose(recipe.runtime.device, "float32", "sdpa").device.value


def _joint(
    recipe: Preset,
    folder: Path,
    progress: Progress,
    *,
    data: str,
    clips: int,
    workers: int = 1,
    start_from: str | None = None,
    **how: Any,
) -> Stage:
    """The joint model on `clips` cached clips in the folder `data`; `start_from` is an index of weights."""
    training = JointTraining(**how)
    vae = None
    if not training.audio_alone:
        vae = cache.VAESource(path=weights_folder(recipe) / "video_vae.safetensors", config=recipe.video_vae)
    _cache(Path(data), training.seed, clips, workers, None, progress, "speaking clips")
    if vae is not None:
        _cache(Path(data), training.seed, clips, workers, vae, progress, "drawing clips")
    captions = None
    if not training.audio_alone:
        path = weights_folder(recipe) / "caption.safetensors"
        captions = CaptionEncoder.load(path, CaptionConfig(**recipe.caption))
    bank = ClipBank(cache.load(Path(data), pictures=not training.audio_alone), captions)

    def build() -> UniAVGen:
        return UniAVGen(UniAVGenConfig(**recipe.model))

    torch.manual_seed(training.seed)
    if start_from is None:
        model = build()
    else:
        index = Path(start_from)
        if not index.is_file():
            raise WeightsError(
                f"train.start_from {start_from} is not there", "train that part first, or leave it out"
            )
        model = load_module(build, index)
    return joint_stage(model, bank, training)


def _cache(
    out: Path, seed: int, clips: int, workers: int, vae: cache.VAESource | None, progress: Progress, what: str
) -> None:
    progress(what, 0, clips)
    for done in cache.build(out, seed=seed, first=0, count=clips, vae=vae, workers=workers):
        progress(what, done, clips)
