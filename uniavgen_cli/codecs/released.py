"""The released checkpoint's codecs together, from the files of its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from uniavgen_cli.codecs.speech_tokens import read_vocabulary
from uniavgen_cli.config import Preset
from uniavgen_cli.errors import UsageError, WeightsError


def load_codecs(
    preset: Preset,
    files: Mapping[str, Path],
    *,
    device: str,
    dtype: torch.dtype,
    captions_device: str,
) -> dict[str, Any]:
    """What the engine needs besides the joint model: video_vae, vocoder, captions and vocabulary, by name.

    VAE and vocoder are in float32; the caption encoder in `dtype` on `captions_device`, once it is needed.
    Raises WeightsError for files that don't fit, UsageError when the packages that compute them are missing.
    """
    try:
        import diffusers  # noqa: F401
        import ftfy  # noqa: F401
        import transformers  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # OSError: beside a torchaudio of another torch
        raise UsageError(
            f"the preset {preset.name} needs diffusers, transformers and ftfy, and can't load them ({error})",
            "pip install 'uniavgen[released]'",
        ) from error
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
