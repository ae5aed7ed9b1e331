"""What the released checkpoint takes of a GPU in each mode, measured beside what `uniavgen plan` says.

    python benchmarks/gpu_memory.py --folder /large/disk [--mode tiled --mode streamed]

A checkpoint of the full size with random weights is written into the folder, 28 GB, unless it is there. Each
mode then makes one clip in a process of its own, under torch's per-process memory cap of the card that it is
named for (CAPS). Planned and measured are the most of each stage: what is allocated, and the CUDA context.
Needs the extra `released`. `--config tiny --device cpu` is for trying the script out: a CPU has no cap and no
figures.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

GIB = 2**30
CAPS = {"resident": 80, "encoder-first": 48, "tiled": 24, "8-bit": 16, "streamed": 12}  # GiB of a card
STAGES = {"captions": "encoding", "encoding": "encoding", "sampling": "sampling", "decoding": "decoding"}
SHARD_BYTES = 4 * GIB


def write_full(folder: Path) -> Path:
    """The released layout at its own sizes, with random weights; the path of a preset for it."""
    import released_folder as tiny
    import torch
    import yaml
    from diffusers import AutoencoderKLWan
    from safetensors.torch import save_file
    from transformers import Qwen2_5OmniToken2WavBigVGANModel, UMT5Config, UMT5EncoderModel
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniBigVGANConfig

    from uniavgen_cli.codecs import umt5, wan_vae
    from uniavgen_cli.config import load_preset
    from uniavgen_cli.engine import costs
    from uniavgen_cli.models.uniavgen import UniAVGen, UniAVGenConfig

    weights, preset, released = folder / "released", folder / "released.yaml", load_preset("uniavgen")
    if preset.exists():
        return preset
    weights.mkdir(parents=True, exist_ok=True)

    def filled(module: torch.nn.Module, dtype: torch.dtype, key: Any = str) -> dict[str, torch.Tensor]:
        shapes = {key(name): tensor.shape for name, tensor in module.state_dict().items()}
        return {name: torch.empty(shape, dtype=dtype).normal_(std=0.02) for name, shape in shapes.items()}

    with torch.device("meta"):
        joint = UniAVGen(UniAVGenConfig(**released.model))
        vae = AutoencoderKLWan(**costs.WAN_VAE, z_dim=released.model["video_latent_channels"])
        encoder = UMT5EncoderModel(UMT5Config(**costs.UMT5_XXL))
        vocoder = Qwen2_5OmniToken2WavBigVGANModel(Qwen2_5OmniBigVGANConfig())
    shards: list[list[str]] = [[]]
    size = 0
    for name, tensor in joint.state_dict().items():
        if size > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += 2 * tensor.numel()
    shapes, index = {name: x.shape for name, x in joint.state_dict().items()}, {}
    for number, names in enumerate(shards, start=1):
        file = f"diffusion_pytorch_model-{number:05}-of-{len(shards):05}.safetensors"
        save_file(
            {n: torch.empty(shapes[n], dtype=torch.bfloat16).normal_(std=0.02) for n in names},
            weights / file,
        )
        index.update(dict.fromkeys(names, file))
    (weights / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    original = wan_vae.original_key(costs.WAN_VAE["num_res_blocks"])
    torch.save(filled(vae, torch.float32, original), weights / "Wan2.2_VAE.pth")
    torch.save(
        filled(encoder, torch.bfloat16, umt5.original_key), weights / "models_t5_umt5-xxl-enc-bf16.pth"
    )
    (weights / "code2wav_bigvgan_model").mkdir(exist_ok=True)
    Qwen2_5OmniBigVGANConfig().to_json_file(weights / "code2wav_bigvgan_model" / "config.json")
    save_file(filled(vocoder, torch.float32), weights / "code2wav_bigvgan_model" / "model.safetensors")
    tiny.write_tokenizer(weights / "google" / "umt5-xxl")
    tokens = [*tiny.VOCABULARY, *(f"token{i}" for i in range(released.model["speech_vocab"]))]
    (weights / "vocab.txt").write_text("\n".join(tokens[: released.model["speech_vocab"]]) + "\n")
    preset.write_text(yaml.safe_dump({"extends": "uniavgen", "about": "random", "weights": str(weights)}))
    return preset


def measure(path: Path, mode: str, device: str) -> dict[str, Any]:
    """One clip in this process: what was planned and what was taken, in GiB, by the engine's stages."""
    import cv2
    import numpy as np
    import torch

    from uniavgen_cli.config import load_preset
    from uniavgen_cli.engine import costs, memory
    from uniavgen_cli.engine.engine import Engine
    from uniavgen_cli.engine.request import Request

    overrides = [f"runtime.memory={mode}", f"runtime.device={device}", "sampling.steps=2"]
    preset = load_preset(path, overrides)
    on_gpu = device != "cpu"
    if on_gpu:
        number = torch.device(device).index or 0
        whole = torch.cuda.get_device_properties(number).total_memory
        cap = CAPS[mode] * GIB - memory.CONTEXT_BYTES  # which the allocator does not count
        torch.cuda.set_per_process_memory_fraction(min(1.0, cap / whole), number)
    taken: dict[str, float] = {}

    def seen(stage: str, done: int, total: int) -> None:
        if on_gpu and done == total:
            free, whole = torch.cuda.mem_get_info(number)
            context = whole - free - torch.cuda.memory_reserved(number)
            taken[stage] = (torch.cuda.max_memory_allocated(number) + context) / GIB
            torch.cuda.reset_peak_memory_stats(number)

    face = path.with_name("face.png")
    cv2.imwrite(str(face), np.random.default_rng(0).integers(0, 255, (720, 1280, 3)).astype(np.uint8))
    engine = Engine.from_preset(preset)
    request = Request(task="generate", prompt="a man", speech="Good morning.", face=face, seed=1)
    clip = engine.run(request, seen)
    spec = clip.plan.spec
    counted = costs.cost(preset, spec, "cuda", engine.runtime.torch_dtype)
    planned: dict[str, float] = {}
    for stage in memory.stages(counted, engine.mode, "cuda"):
        name = STAGES[stage.name]
        planned[name] = max(planned.get(name, 0.0), stage.gpu / GIB)
    return {
        "mode": engine.mode.name,
        "cap": CAPS[mode],
        "window": [spec.num_frames, spec.width, spec.height],
        "planned": planned,
        "measured": taken,
        "peaks": [max(planned.values()), max(taken.values(), default=None)],
        "device": torch.cuda.get_device_name(number) if on_gpu else "cpu",
        "torch": torch.__version__,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="GPU memory of each mode, measured beside what is planned.")
    parser.add_argument("--folder", type=Path, required=True, help="where the random checkpoint is written")
    parser.add_argument("--mode", action="append", choices=CAPS, help="may be repeated; else all")
    parser.add_argument("--config", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--here", action="store_true", help="in this process, with no other left to come")
    given = parser.parse_args(arguments)
    from uniavgen_cli.codecs.released import hush

    hush()
    given.folder.mkdir(parents=True, exist_ok=True)
    if given.config == "full":
        path = write_full(given.folder)
    else:
        from released_folder import write_released

        path = given.folder / "released.yaml"
        path = path if path.exists() else write_released(given.folder)
    for mode in given.mode or CAPS:
        if given.here:
            print(json.dumps(measure(path, mode, given.device)), flush=True)
            continue
        command = [sys.executable, __file__, "--here", "--folder", str(given.folder), "--mode", mode]
        subprocess.run([*command, "--config", given.config, "--device", given.device], check=True)


if __name__ == "__main__":
    main()
