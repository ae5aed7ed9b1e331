"""The codecs of a preset, of either layout, from the files of its weights."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from uniavgen_cli.codecs import PictureCodec
from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.codecs.vocoder import Vocoder, VocoderConfig
from uniavgen_cli.config import LAYOUTS, Preset, weights_folder
from uniavgen_cli.errors import WeightsError
from uniavgen_cli.models.state_dict import load_weights


def load_codecs(
    preset: Preset,
    files: Mapping[str, Path],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    captions_device: str = "cpu",
    load_captions: Callable[..., None] = load_weights,
) -> dict[str, Any]:
    """What is needed beside the joint model, by the names of Engine's arguments.

    They are video_vae, vocoder and captions, and the released checkpoint's vocabulary; `dtype`,
    `captions_device` and `load_captions` are of its caption encoder. Raises WeightsError and UsageError.
    """
    if preset.layout == "released":
        from uniavgen_cli.codecs import released  # diffusers and transformers

        return released.load_codecs(
            preset,
            files,
            device=device,
            dtype=dtype,
            captions_device=captions_device,
            load_captions=load_captions,
        )
    return {
        "video_vae": VideoVAE.load(files["video_vae"], VideoVAEConfig(**preset.video_vae)).to(device),
        "vocoder": Vocoder.load(files["vocoder"], VocoderConfig(**preset.vocoder)).to(device),
        "captions": CaptionEncoder.load(files["caption"], CaptionConfig(**preset.caption)),
    }


def load_picture_codec(preset: Preset, device: str = "cpu") -> PictureCodec:
    """The video VAE alone; the other parts need not be there. Raises WeightsError and UsageError."""
    path = picture_codec_file(preset)
    if preset.layout == "nano":
        return VideoVAE.load(path, VideoVAEConfig(**preset.video_vae)).to(device)
    from uniavgen_cli.codecs import released

    released.import_libraries(preset.name)
    from uniavgen_cli.codecs.wan_vae import WanVideoVAE

    config = preset.video_vae
    return WanVideoVAE.load(path, config["latents_mean"], config["latents_std"], device=device)


def picture_codec_file(preset: Preset) -> Path:
    """The file or folder of the video VAE's weights. Raises WeightsError."""
    folder = weights_folder(preset)
    places = [folder / name for name in LAYOUTS[preset.layout]["video_vae"]]
    found = [place for place in places if place.exists()]
    if not found:
        names = " or ".join(map(str, places))
        raise WeightsError(
            f"the weights of preset {preset.name} lack the video VAE: there is no {names}", "fetch them again"
        )
    return found[0]
