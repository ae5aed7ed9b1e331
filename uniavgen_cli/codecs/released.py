"""The released checkpoint's codecs together, from the files of its folder."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from uniavgen_cli.codecs.speech_tokens import read_vocabulary
from uniavgen_cli.config import Preset
from uniavgen_cli.errors import UsageError, WeightsError
from uniavgen_cli.models.state_dict import load_weights


def load_codecs(
    preset: Preset,
    files: Mapping[str, Path],
    *,
    device: str,
    dtype: torch.dtype,
    captions_device: str,
    load_captions: Callable[..., None] = load_weights,
) -> dict[str, Any]:
    """What the engine needs besides the joint model: video_vae, vocoder, captions and vocabulary, by name.

    VAE and vocoder are in float32; the caption encoder in `dtype` on `captions_device`, by `load_captions`
    once it is needed. Raises WeightsError for files that don't fit, UsageError when the packages that compute
    them are missing.
    """
    import_libraries(preset.name)
    from uniavgen_cli.codecs.bigvgan import BigVGANVocoder
    from uniavgen_cli.codecs.umt5 import UMT5Captions
    from uniavgen_cli.codecs.wan_vae import WanVideoVAE

    vocabulary = read_vocabulary(files["vocabulary"], preset.model["speech_vocab"])
    captions = UMT5Captions(
        files["caption"],
        files["tokenizer"],
        tokens=preset.caption["tokens"],
        dim=preset.caption["dim"],
        device=captions_device,
        dtype=dtype,
        load=load_captions,
    )
    vae = WanVideoVAE.load(
        files["video_vae"],
        preset.video_vae["latents_mean"],
        preset.video_vae["latents_std"],
        device=device,
    )
    if vae.latent_channels != preset.model["video_latent_channels"]:
        raise WeightsError(
            f"{files['video_vae']} has {vae.latent_channels} latent channels and the joint model "
            f"{preset.model['video_latent_channels']}",
            "it is another model's VAE",
        )
    vocoder = BigVGANVocoder.load(files["vocoder"], device=device)
    return {"video_vae": vae, "vocoder": vocoder, "captions": captions, "vocabulary": vocabulary}


def import_libraries(preset_name: str) -> None:
    """Import what the codecs are computed by; raises UsageError."""
    hush()
    try:
        import diffusers  # noqa: F401
        import ftfy  # noqa: F401
        import transformers  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # OSError: beside a torchaudio of another torch
        raise UsageError(
            f"the preset {preset_name} needs diffusers, transformers and ftfy, and can't load them ({error})",
            "pip install 'uniavgen[released]'",
        ) from error


def hush() -> None:
    """Keep torchao's notes to developers back: diffusers imports it where it is installed.

    They tell of kernels that no one needs here, and that would be there on another machine.
    """
    for name in ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"):
        logging.getLogger(name).setLevel(logging.ERROR)
