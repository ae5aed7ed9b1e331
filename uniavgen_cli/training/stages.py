"""From a preset's recipe to the stage that trains it: one line a part."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.codecs.vocoder import VocoderConfig
from uniavgen_cli.config import Preset, weights_folder
from uniavgen_cli.data import cache
from uniavgen_cli.errors import UsageError, WeightsError
from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.runtime import choose
from uniavgen_cli.training.caption_stage import caption_stage
from uniavgen_cli.training.face_stage import face_stage
from uniavgen_cli.training.joint_stage import ClipBank, JointTraining, PictureBank, joint_stage
from uniavgen_cli.training.trainer import Stage
from uniavgen_cli.training.vae_stage import latent_importance, vae_stage
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
    except (TypeError, ValueError) as error:
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
    pictures: int = 0,
    workers: int = 1,
    start_from: str | None = None,
    **how: Any,
) -> Stage:
    """The joint model on `clips` cached clips and as many `pictures` in the folder `data`.

    `start_from` is an index of weights.
    """
    training = JointTraining(**how)
    out, seed = Path(data), training.seed
    _follow(
        cache.build(out, seed=seed, first=0, count=clips, workers=workers), progress, "speaking clips", clips
    )
    captions = picture_bank = importance = None
    if not training.audio_alone:
        folder = weights_folder(recipe)
        vae = cache.VAESource(path=folder / "video_vae.safetensors", config=recipe.video_vae)
        drawing = cache.build(out, seed=seed, first=0, count=clips, vae=vae, workers=workers)
        _follow(drawing, progress, "drawing clips", clips)
        captions = CaptionEncoder.load(folder / "caption.safetensors", CaptionConfig(**recipe.caption))
        importance = latent_importance(VideoVAE.load(vae.path, VideoVAEConfig(**recipe.video_vae)))
        if pictures:
            drawing = cache.build_pictures(out, seed=seed, count=pictures, vae=vae, workers=workers)
            _follow(drawing, progress, "drawing pictures", pictures)
            picture_bank = PictureBank(cache.load_pictures(out), captions)
    bank = ClipBank(cache.load(out, pictures=not training.audio_alone), captions) if clips else None

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
    return joint_stage(model, bank, training, pictures=picture_bank, importance=importance)


def _follow(written: Iterator[int], progress: Progress, what: str, total: int) -> None:
    progress(what, 0, total)
    for done in written:
        progress(what, done, total)
