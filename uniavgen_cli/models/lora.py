"""Low-rank adapters (LoRA, arXiv 2106.09685) in a file, added to the weights they were trained beside.

The file is safetensors with the names peft gives: `base_model.model.LAYER.lora_A.weight` (rank, in) and
`.lora_B.weight` (out, rank); its metadata holds `rank` and `alpha`, and a layer's weight W becomes
W + alpha / rank * B A.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from uniavgen_cli.errors import WeightsError

PREFIX = "base_model.model."
HALVES = (".lora_A.weight", ".lora_B.weight")


def save_lora(adapters: dict[str, tuple[Tensor, Tensor]], path: Path, alpha: float) -> None:
    """Write the pairs A (rank, in), B (out, rank) of each layer in float32."""
    tensors = {
        f"{PREFIX}{layer}{half}": tensor.detach().float().cpu().contiguous()
        for layer, pair in adapters.items()
        for half, tensor in zip(HALVES, pair, strict=True)
    }
    rank = next(iter(adapters.values()))[0].shape[0]
    beside = path.with_suffix(".tmp")
    save_file(tensors, beside, metadata={"format": "pt", "rank": str(rank), "alpha": f"{alpha:g}"})
    beside.replace(path)


@torch.no_grad()
def add_lora(model: nn.Module, path: Path) -> int:
    """Add the adapters at `path` to the model's weights; how many layers have one.

    Raises WeightsError, and changes nothing, when the file can't be read or is another model's.
    """
    tensors, rank, alpha = _read(path)
    layers: dict[str, Any] = {
        name: module for name, module in model.named_modules() if hasattr(module, "in_features")
    }
    problems = []
    wanted = sorted({name.removesuffix(half) for name in tensors for half in HALVES if name.endswith(half)})
    for layer in wanted:
        if layer not in layers:
            problems.append(f"{layer} is no layer of the model")
            continue
        out_dim, in_dim = layers[layer].weight.shape
        for half, shape in zip(HALVES, ((rank, in_dim), (out_dim, rank)), strict=True):
            found = tuple(tensors[layer + half].shape) if layer + half in tensors else None
            if found != shape:
                problems.append(f"{layer}{half} is {'missing' if found is None else found}, not {shape}")
    problems += [f"{name} is unknown" for name in tensors if not name.endswith(HALVES)]
    if problems or not wanted:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        what = problems[0] + more if problems else "it holds no adapters"
        raise WeightsError(
            f"the LoRA {path} does not fit this model: {what}", "take one that was trained with this preset"
        )
    for layer in wanted:
        weight = layers[layer].weight
        a, b = (tensors[layer + half].to(weight.device) for half in HALVES)
        changed = weight.float() + (alpha / rank) * (b.float() @ a.float())
        if hasattr(layers[layer], "hold"):  # it keeps its numbers in 8 bits
            layers[layer].hold(changed)
        else:
            changed = changed.to(weight.dtype)
            layers[layer].weight = nn.Parameter(changed, requires_grad=weight.requires_grad)
    return len(wanted)


def _read(path: Path) -> tuple[dict[str, Tensor], int, float]:
    """The file's tensors by the model's own names, its rank and alpha."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name.removeprefix(PREFIX): file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise WeightsError(f"the LoRA {path} is not there", "check its name") from None
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"the LoRA {path} can't be read as .safetensors ({str(error).splitlines()[0]})",
            "it is incomplete, or another kind of file",
        ) from None
    try:
        rank, alpha = int(metadata["rank"]), float(metadata["alpha"])
        if rank < 1:
            raise ValueError("a rank below 1")
    except (KeyError, ValueError):
        raise WeightsError(
            f"the LoRA {path} does not say its rank and alpha in its metadata",
            "`uniavgen train --lora` writes files that do",
        ) from None
    return tensors, rank, alpha
