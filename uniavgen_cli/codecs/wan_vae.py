"""The released video VAE, Wan2.2's: 48 channels, 16x in space, 4x in time, computed by diffusers.

It is read from the original `Wan2.2_VAE.pth`, whose keys and sizes are mapped here, or from a folder as
diffusers writes it. Source: Wan2.2 (arXiv 2503.20314), `AutoencoderKLWan` of diffusers. Axis letters as in
`video_vae.py`.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uniavgen_cli.codecs.video_vae import check_frames
from uniavgen_cli.errors import WeightsError
from uniavgen_cli.models.state_dict import Shape, load_weights, read_config, read_shapes, weights_in
from uniavgen_cli.shapes import SPATIAL_STRIDE, TEMPORAL_STRIDE


class WanVideoVAE(nn.Module):
    """Frames to latents and back, in float32; latents are normalised by the given mean and deviation."""

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, vae: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.vae: Any = vae  # diffusers' AutoencoderKLWan, which wears decorators that hide its types
        self.register_buffer("latent_mean", torch.tensor(mean).view(1, -1, 1, 1, 1))
        self.register_buffer("latent_std", torch.tensor(std).view(1, -1, 1, 1, 1))

    @classmethod
    def load(
        cls, path: Path, mean: Sequence[float], std: Sequence[float], *, device: str = "cpu"
    ) -> "WanVideoVAE":
        """The VAE in the original .pth at `path`, or in a folder of diffusers; raises WeightsError.

        A folder's own statistics of the latents come before `mean` and `std`.
        """
        from diffusers import AutoencoderKLWan

        if path.is_dir():
            sizes, weights = read_config(path), weights_in(path)
            file_key: Callable[[str], str] = str
            mean, std = sizes.get("latents_mean", mean), sizes.get("latents_std", std)
        else:
            sizes, weights = sizes_of(read_shapes(path)), path
            file_key = original_key(sizes["num_res_blocks"])
        try:
            with torch.device("meta"):
                vae = AutoencoderKLWan.from_config({**sizes, "latents_mean": mean, "latents_std": std})
        except Exception as error:  # the library raises all sorts
            raise WeightsError(f"{path} has sizes no VAE can have ({error})", "fetch it again") from error
        config = vae.config
        strides = (config.scale_factor_spatial, config.scale_factor_temporal)
        if strides != (SPATIAL_STRIDE, TEMPORAL_STRIDE):
            raise WeightsError(
                f"{path} is {strides[0]}x in space and {strides[1]}x in time, "
                f"not {SPATIAL_STRIDE}x and {TEMPORAL_STRIDE}x",
                "it is another model's VAE: Wan2.2_VAE.pth is needed",
            )
        load_weights(vae, weights, device=device, float32_parts=(), file_key=file_key)
        if not len(mean) == len(std) == config.z_dim:
            raise WeightsError(
                f"{path} has {config.z_dim} latent channels, and statistics are given of {len(mean)} means "
                f"and {len(std)} deviations",
                "video_vae.latents_mean and latents_std of the preset hold one number a channel",
            )
        return cls(vae, mean, std).to(device).eval()

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.latent_mean.shape[1]

    def encode(self, frames: Tensor) -> Tensor:
        """Normalised latents (b, c, 1 + k, h/16, w/16) of frames (b, 3, 1 + 4k, h, w): the posterior's mean.

        Raises ValueError for another frame count, which diffusers would cut, and for sides that are no
        multiples of 16.
        """
        check_frames(frames)
        with torch.autocast(frames.device.type, enabled=False):
            latents = self.vae.encode(frames.float()).latent_dist.mode()
        return (latents - self.latent_mean) / self.latent_std

    def decode(self, latents: Tensor) -> Tensor:
        """Frames (b, 3, 1 + 4k, h, w) in [-1, 1] of normalised latents (b, c, 1 + k, h/16, w/16)."""
        with torch.autocast(latents.device.type, enabled=False):
            raw = latents.float() * self.latent_std + self.latent_mean
            return self.vae.decode(raw).sample.clamp(-1, 1)


def original_key(num_res_blocks: int) -> Callable[[str], str]:
    """A map from the names of AutoencoderKLWan's weights to those in `Wan2.2_VAE.pth`.

    There a stage's blocks and what halves or doubles the picture after them stand in one list.
    """
    parts = (
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
        (r"\.conv_in\.", ".conv1."),
        (r"\.norm_out\.", ".head.0."),
        (r"\.conv_out\.", ".head.2."),
        (r"\.mid_block\.resnets\.0\.", ".middle.0."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.1\.", ".middle.2."),
        (r"\.down_blocks\.(\d+)\.resnets\.", r".downsamples.\1.downsamples."),
        (r"\.down_blocks\.(\d+)\.downsampler\.", rf".downsamples.\1.downsamples.{num_res_blocks}."),
        (r"\.up_blocks\.(\d+)\.resnets\.", r".upsamples.\1.upsamples."),
        (r"\.up_blocks\.(\d+)\.upsampler\.", rf".upsamples.\1.upsamples.{num_res_blocks + 1}."),
    )
    # within a residual block, where .conv1 is not the stem
    block = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}

    def key(name: str) -> str:
        if ".resnets." in name:
            name = re.sub(r"\.(norm1|conv1|norm2|conv2)\.", lambda m: f".{block[m[1]]}.", name)
            name = name.replace(".conv_shortcut.", ".shortcut.")
        for pattern, replacement in parts:
            name = re.sub(pattern, replacement, name)
        return name

    return key


def sizes_of(shapes: dict[str, Shape]) -> dict[str, Any]:
    """The arguments of AutoencoderKLWan that an original file's keys and shapes tell.

    What they don't tell is as in the released file, so that the strict comparison names what is missing.
    """

    def size(released: int, *places: tuple[str, int]) -> int:
        told = (shapes[key][axis] for key, axis in places if len(shapes.get(key, ())) > axis)
        return next(told, released)

    def numbers(pattern: str) -> set[int]:
        return {int(match[1]) for key in shapes if (match := re.match(pattern, key))}

    base_dim = size(160, ("encoder.conv1.bias", 0), ("encoder.conv1.weight", 0))
    multiples = []
    for stage in sorted(numbers(r"encoder\.downsamples\.(\d+)\.")):
        block = f"encoder.downsamples.{stage}.downsamples.0.residual"
        width = size(base_dim, (f"{block}.2.bias", 0), (f"{block}.6.bias", 0))
        multiples.append(max(1, width // base_dim))
    multiples = multiples or [1, 2, 4, 4]
    blocks = numbers(r"encoder\.downsamples\.0\.downsamples\.(\d+)\.residual\.")
    halving = numbers(r"encoder\.downsamples\.(\d+)\.downsamples\.\d+\.time_conv\.") or {1, 2}
    channels = size(12, ("decoder.head.2.bias", 0), ("encoder.conv1.weight", 1))
    patch = max(1, round((channels / 3) ** 0.5))
    return {
        "base_dim": base_dim,
        "decoder_base_dim": size(1024, ("decoder.conv1.bias", 0), ("decoder.conv1.weight", 0))
        // multiples[-1],
        "z_dim": size(48, ("conv2.bias", 0), ("conv2.weight", 0)),
        "dim_mult": multiples,
        "num_res_blocks": len(blocks) or 2,
        "attn_scales": [],
        "temperal_downsample": [stage in halving for stage in range(len(multiples) - 1)],
        "is_residual": True,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": patch,
        "scale_factor_spatial": patch * 2 ** (len(multiples) - 1),
        "scale_factor_temporal": 2 ** len(halving),
    }
