"""From a preset's recipe to the stage that trains it: one line a part."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.load import load_codecs, load_picture_codec, picture_codec_file
from uniavgen_cli.codecs.speech_tokens import character_indices, language_of, speech_indices, speech_tokens
from uniavgen_cli.codecs.video_vae import VideoVAEConfig
from uniavgen_cli.codecs.vocoder import VocoderConfig
from uniavgen_cli.config import Preset, weights_files, weights_folder
from uniavgen_cli.data import cache
from uniavgen_cli.data.prepared import read_manifest
from uniavgen_cli.engine.weights import file_sha256, weights_sha256
from uniavgen_cli.errors import InputError, UsageError, WeightsError
from uniavgen_cli.models.state_dict import load_module
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig
from uniavgen_cli.runtime import choose
from uniavgen_cli.training import processes
from uniavgen_cli.training.caption_stage import caption_stage
from uniavgen_cli.training.face_stage import face_stage
from uniavgen_cli.training.joint_stage import ClipBank, JointTraining, PictureBank, joint_stage
from uniavgen_cli.training.trainer import Stage
from uniavgen_cli.training.vae_stage import latent_importance, vae_stage
from uniavgen_cli.training.vocoder_stage import vocoder_stage
from uniavgen_cli.training.watches import drawn_unseen, mask_watch, sample_watch

INSTALLED = "installed"  # as train.start_from: the preset's own weights

Progress = Callable[[str, int, int], None]


def build_stage(recipe: Preset, folder: Path, progress: Progress) -> Stage:
    """The stage of a recipe, its data made first; raises UsageError for an unknown part or key."""
    how = dict(recipe.train or {})
    part = how.pop("part", None)
    builders: dict[str, Callable[..., Stage]] = {
        "video_vae": lambda **keys: vae_stage(VideoVAEConfig(**recipe.video_vae), progress, **keys),
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
    """Where the recipe trains: its runtime.device, or the first GPU there is; under torchrun each its own."""
    device = choose(recipe.runtime.device, "float32", "sdpa").device.value
    return f"cuda:{processes.local_rank()}" if device == "cuda" and processes.count() > 1 else device


def codec_hash(preset: Preset) -> str:
    """What tells one video VAE from another, by its weights: latents of one are noise to the next."""
    path = picture_codec_file(preset)
    return file_sha256(path) if path.is_file() else weights_sha256(path)


def _joint(
    recipe: Preset,
    folder: Path,
    progress: Progress,
    *,
    data: str,
    clips: int = 0,
    pictures: int = 0,
    variety: float = 1.0,
    liveliness: float = 1.0,
    photographic: float = 0.0,
    workers: int = 1,
    start_from: str | None = None,
    held_out: int = 0,
    sample_every: int = 0,
    mask_every: int = 0,
    **how: Any,
) -> Stage:
    """The joint model on the clips in the folder `data`: what `uniavgen prepare` made there, or drawn ones.

    Drawn are `clips` of them, with heads of that `liveliness` and that share made more like photographs
    are, and as many `pictures` of people of that `variety`, where they are not yet there; prepared clips'
    pictures are their first. `start_from` is an index of weights, or "installed" for the preset's own.
    Every `mask_every` steps M is held against the faces of unseen people, the last `held_out` clips of
    prepared ones, and every `sample_every` steps a clip is made.
    """
    out = Path(data)
    manifest = read_manifest(out)
    if manifest is not None:
        pictures = 0
    training = JointTraining(**how)
    with_pictures = not training.audio_alone
    if manifest is not None:
        _check_codec(manifest, recipe, out)
    elif processes.rank() == 0:
        _draw(
            recipe,
            out,
            progress,
            training,
            clips=clips,
            pictures=pictures,
            variety=variety,
            liveliness=liveliness,
            photographic=photographic,
            workers=workers,
        )
    processes.wait()

    captions, picture_bank, importance, indices = None, None, None, character_indices
    parts: dict[str, Any] = {}
    if with_pictures:
        parts = _codecs(recipe)
        captions = parts["captions"]
        if recipe.layout == "nano":
            importance = latent_importance(parts["video_vae"])
    if "vocabulary" in parts:
        indices = partial(_released_indices, parts["vocabulary"])
    cached = cache.load(out, pictures=with_pictures) if clips or manifest is not None else []
    if manifest is not None and len(cached) <= held_out:
        what = f"{out} holds {len(cached)} clips, and {held_out} are held out"
        raise InputError(what, "prepare more videos")
    kept = len(cached) - (held_out if manifest is not None else 0)
    bank = ClipBank(cached[:kept], captions) if cached else None
    if captions is not None and training.picture_share:
        shown = cache.first_pictures(cached[:kept]) if manifest is not None else cache.load_pictures(out)
        picture_bank = PictureBank(shown, captions)

    model = _start(recipe, training, start_from)
    watches = []
    if with_pictures and mask_every:
        unseen = cached[kept:]
        if manifest is None:
            unseen = drawn_unseen(parts["video_vae"], recipe.clip.short_side)
        if unseen:
            watches.append(
                mask_watch(ClipBank(unseen, captions), training, mask_every, training_device(recipe))
            )
    if with_pictures and sample_every and cached:
        watches.append(sample_watch(recipe, cached[0], sample_every))
    return joint_stage(
        model,
        bank,
        training,
        pictures=picture_bank,
        importance=importance,
        indices=indices,
        watches=tuple(watches),
    )


def _draw(
    recipe: Preset,
    out: Path,
    progress: Progress,
    training: JointTraining,
    *,
    clips: int,
    pictures: int,
    variety: float,
    liveliness: float,
    photographic: float,
    workers: int,
) -> None:
    """Draw and speak the clips and pictures that are not there yet."""
    seed = training.seed
    _follow(
        cache.build(out, seed=seed, first=0, count=clips, workers=workers), progress, "speaking clips", clips
    )
    if training.audio_alone:
        return
    path = weights_folder(recipe) / "video_vae.safetensors"
    vae = cache.VAESource(path=path, config=recipe.video_vae, digest=file_sha256(path)[:12])
    drawing = cache.build(
        out,
        seed=seed,
        first=0,
        count=clips,
        vae=vae,
        liveliness=liveliness,
        photographic=photographic,
        workers=workers,
    )
    _follow(drawing, progress, "drawing clips", clips)
    if pictures:
        drawing = cache.build_pictures(
            out, seed=seed, count=pictures, vae=vae, variety=variety, workers=workers
        )
        _follow(drawing, progress, "drawing pictures", pictures)


def _start(recipe: Preset, training: JointTraining, start_from: str | None) -> UniAVGen:
    """The model to train: from scratch, or with weights; frozen ones in the type the device likes."""

    def build() -> UniAVGen:
        return UniAVGen(UniAVGenConfig(**recipe.model))

    torch.manual_seed(training.seed)
    if start_from is None:
        return build()
    index = weights_files(recipe)["joint"] if start_from == INSTALLED else Path(start_from)
    if not index.is_file():
        raise WeightsError(
            f"train.start_from {start_from} is not there", "train that part first, or leave it out"
        )
    device = training_device(recipe)
    frozen_dtype = choose(recipe.runtime.device, recipe.runtime.dtype, "sdpa").torch_dtype
    small = training.lora_rank > 0 and device != "cpu"
    return load_module(build, index, dtype=frozen_dtype if small else torch.float32)


def _codecs(recipe: Preset) -> dict[str, Any]:
    """The codecs that training reads; of nano's layout no more, since the rest may not be trained yet."""
    if recipe.layout == "nano":
        path = weights_folder(recipe) / "caption.safetensors"
        captions = CaptionEncoder.load(path, CaptionConfig(**recipe.caption))
        return {"video_vae": load_picture_codec(recipe), "captions": captions}
    runtime = choose(recipe.runtime.device, recipe.runtime.dtype, "sdpa")
    dtype = runtime.torch_dtype if runtime.device.value != "cpu" else torch.float32
    home = training_device(recipe)
    return load_codecs(recipe, weights_files(recipe), dtype=dtype, captions_device=home)


def _check_codec(manifest: Mapping[str, Any], recipe: Preset, out: Path) -> None:
    if manifest["how"].get("codec") != codec_hash(recipe):
        raise InputError(
            f"the clips in {out} were made with the video VAE of {manifest['how'].get('preset')}, or of an "
            "earlier version of these weights",
            "prepare them again, with the preset that you train",
        )


def _released_indices(vocabulary: Mapping[str, int], text: str) -> list[int]:
    return speech_indices(speech_tokens(text, language_of(text)), vocabulary)


def _follow(written: Iterator[int], progress: Progress, what: str, total: int) -> None:
    progress(what, 0, total)
    for done in written:
        progress(what, done, total)
