"""A tiny, untrained checkpoint in exactly the layout of the released one, and a preset for it.

File names: index and shards, `Wan2.2_VAE.pth`, `models_t5_umt5-xxl-enc-bf16.pth`, `google/umt5-xxl/`,
`code2wav_bigvgan_model/` as on the hub; the vocabulary is `vocab.txt`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from uniavgen_cli.codecs import umt5, wan_vae
from uniavgen_cli.config import load_preset
from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig

CAPTION_DIM, CAPTION_TOKENS = 32, 24
SYLLABLES = ("jin1", "tian1", "qi4", "hen3", "hao3", "ni2", "wo3", "men")
VOCABULARY = (" ", *(chr(code) for code in range(33, 127)), *SYLLABLES, "。", "，")
WORDS = ("▁a", "▁man", "▁woman", "▁with", "▁red", "▁hair", "▁smiling")
SIZES = {
    "model": {
        "video_dim": 32, "video_heads": 2, "video_ffn_dim": 48,
        "audio_dim": 16, "audio_heads": 1, "audio_ffn_dim": 32,
        "num_blocks": 3, "interaction_blocks": [0, 2], "freq_dim": 16,
        "caption_dim": CAPTION_DIM, "caption_tokens": CAPTION_TOKENS,
        "speech_vocab": len(VOCABULARY), "speech_text_dim": 16, "speech_conv_blocks": 1,
    },
    "caption": {"tokens": CAPTION_TOKENS, "dim": CAPTION_DIM},
    "clip": {"short_side": 64, "max_frames": 33, "min_frames": 33, "voice_s": 2.0},
    "sampling": {"steps": 2, "skip_block": 1},
    "runtime": {"device": "cpu", "dtype": "float32"},
}  # fmt: skip
NUM_RES_BLOCKS = 2


def write_released(folder: Path) -> Path:
    """Write released.yaml and the folder `released` beside it; the path of the preset."""
    weights = folder / "released"
    path = folder / "released.yaml"
    path.write_text(
        yaml.safe_dump({"extends": "uniavgen", "about": "for tests", "weights": str(weights), **SIZES})
    )
    weights.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_joint(weights, UniAVGen(UniAVGenConfig(**load_preset(path).model)), num_shards=3)
        torch.save(original_vae(tiny_vae()), weights / "Wan2.2_VAE.pth")
        torch.save(original_umt5(tiny_umt5()), weights / "models_t5_umt5-xxl-enc-bf16.pth")
        write_vocoder(weights / "code2wav_bigvgan_model")
    write_tokenizer(weights / "google" / "umt5-xxl")
    (weights / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY), encoding="utf-8")
    return path


def write_joint(folder: Path, model: nn.Module, num_shards: int) -> None:
    """The index and shards of a joint model, in bfloat16."""
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    weight_map = {}
    for shard in range(num_shards):
        file = f"diffusion_pytorch_model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = dict(list(tensors.items())[shard::num_shards])
        save_file(part, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))


def tiny_vae() -> nn.Module:
    """AutoencoderKLWan, as Wan2.2's but narrow."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4, decoder_base_dim=6, z_dim=48, dim_mult=[1, 2, 4, 4], num_res_blocks=NUM_RES_BLOCKS,
        attn_scales=[], temperal_downsample=[False, True, True], is_residual=True, in_channels=12,
        out_channels=12, patch_size=2, scale_factor_temporal=4, scale_factor_spatial=16,
        latents_mean=[0.0] * 48, latents_std=[1.0] * 48,
    )  # fmt: skip


def tiny_umt5() -> nn.Module:
    """UMT5EncoderModel, as umT5-xxl but narrow."""
    from transformers import UMT5Config, UMT5EncoderModel

    num_tokens = len(json.loads(tokenizer_json())["model"]["vocab"])
    return UMT5EncoderModel(
        UMT5Config(vocab_size=num_tokens + 3, d_model=CAPTION_DIM, d_kv=8, d_ff=40, num_layers=2, num_heads=4)
    )


def original_vae(vae: nn.Module) -> dict[str, Tensor]:
    """Its weights by the names of Wan2.2_VAE.pth."""
    return _renamed(vae, wan_vae.original_key(NUM_RES_BLOCKS))


def original_umt5(encoder: nn.Module) -> dict[str, Tensor]:
    """Its weights by the names of models_t5_umt5-xxl-enc-bf16.pth, in bfloat16."""
    tensors = _renamed(encoder, umt5.original_key)
    return {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}


def _renamed(module: nn.Module, key: Callable[[str], str]) -> dict[str, Tensor]:
    return {key(name): tensor.detach().clone() for name, tensor in module.state_dict().items()}


def write_vocoder(folder: Path) -> None:
    """config.json and model.safetensors of a narrow BigVGAN."""
    from transformers import Qwen2_5OmniToken2WavBigVGANModel
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig

    config = Qwen2_5OmniBigVGANConfig(
        upsample_initial_channel=64, resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1, 3, 5]]
    )
    model = Qwen2_5OmniToken2WavBigVGANModel(config)
    with torch.no_grad():
        for parameter in model.parameters():  # as built it is nearly silent
            parameter.mul_(3)
    folder.mkdir()
    config.to_json_file(folder / "config.json")
    save_file(model.state_dict(), folder / "model.safetensors")


def tokenizer_json() -> str:
    """A Unigram tokenizer as umT5's, with a few words, ASCII, and an end token after every text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((word, -3.0) for word in WORDS)]
    tokenizer = Tokenizer(
        models.Unigram([*pieces, *((chr(code), -5.0) for code in range(33, 127))], unk_id=2)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer.to_str()


def write_tokenizer(folder: Path) -> None:
    """The tokenizer's folder."""
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    names = {"tokenizer_class": "T5TokenizerFast", "eos_token": "</s>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
