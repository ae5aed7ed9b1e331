"""An untrained model of the smallest size, as a preset file and its weights: every path runs."""

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from uniavgen_cli.codecs.caption import CaptionConfig, CaptionEncoder
from uniavgen_cli.codecs.video_vae import VideoVAE, VideoVAEConfig
from uniavgen_cli.codecs.vocoder import Vocoder, VocoderConfig
from uniavgen_cli.config import load_preset
from uniavgen_cli.models.state_dict import save_sharded
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig

SIZES = {
    "model": {
        "video_dim": 32, "video_heads": 2, "video_ffn_dim": 32,
        "audio_dim": 32, "audio_heads": 2, "audio_ffn_dim": 32,
        "num_blocks": 2, "interaction_blocks": [0], "freq_dim": 16, "caption_dim": 8, "caption_tokens": 12,
        "speech_text_dim": 16, "speech_conv_blocks": 1, "video_latent_channels": 4,
    },
    "video_vae": {"latent_channels": 4},
    "vocoder": {"dim": 16, "num_blocks": 1},
    "caption": {"tokens": 12, "dim": 8, "num_layers": 1, "num_heads": 2},
    "sampling": {"steps": 2, "skip_block": 1},
    "clip": {"short_side": 64, "max_frames": 33, "min_frames": 9},
}  # fmt: skip


def write_tiny_preset(folder: Path) -> Path:
    """Write tiny.yaml and its weights into `folder`; the path of the preset."""
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump({"extends": "nano", "about": "for tests", "weights": str(folder / "tiny"), **SIZES})
    )
    (folder / "tiny").mkdir()
    preset = load_preset(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vocabulary = ("woman", "man", "red", "hair")
        captions = CaptionEncoder(CaptionConfig(**preset.caption), vocabulary).state_dict()
        save_file(
            captions, folder / "tiny" / "caption.safetensors", metadata={"vocabulary": json.dumps(vocabulary)}
        )
        vae, vocoder = VideoVAE(VideoVAEConfig(**preset.video_vae)), Vocoder(VocoderConfig(**preset.vocoder))
        save_file(vae.state_dict(), folder / "tiny" / "video_vae.safetensors")
        save_file(vocoder.state_dict(), folder / "tiny" / "vocoder.safetensors")
        save_sharded(UniAVGen(UniAVGenConfig(**preset.model)).state_dict(), folder / "tiny")
    return path
