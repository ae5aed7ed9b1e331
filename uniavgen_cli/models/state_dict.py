"""Weights in and out of files: strict, tensors only, built on the meta device first.

The modules carry the released checkpoint's names, so its files need no map.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from uniavgen_cli.errors import WeightsError

INDEX_SUFFIX = ".safetensors.index.json"
FLOAT32_PARTS = ("time_", "modulation", "norm")  # small, and computed in float32 whatever the rest is
MAX_SHARD_BYTES = 15 * 2**20  # with its header a file stays under 16 MiB

Module = TypeVar("Module", bound=nn.Module)


def load_module(
    build: Callable[[], Module],
    path: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Module:
    """The module `build()` makes, with the weights at `path`: a .safetensors file or the index of its shards.

    Every key must be there with its shape, and no other; raises WeightsError naming the first five that are
    not. Parameters are `dtype`, less timestep embeddings, modulations and norms, which stay float32.
    """
    with torch.device("meta"):
        module = build()
    load_weights(module, path, device=device, dtype=dtype)
    return module.eval()


def load_weights(
    module: nn.Module, path: Path, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> None:
    """Give a module that is built the weights at `path`, as strictly as `load_module`."""
    tensors = read_tensors(path, device)
    _check(module.state_dict(), tensors, path)
    module.load_state_dict({name: _cast(name, x, dtype) for name, x in tensors.items()}, assign=True)


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """All tensors of a .safetensors file, or of the shards an index names."""
    tensors = {}
    try:
        for file in _files(path):
            with safe_open(file, framework="pt", device=device) as shard:
                tensors.update({name: shard.get_tensor(name) for name in shard.keys()})
    except (OSError, SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise WeightsError(
            f"{path} can't be read as weights ({error})", "fetch or train them again"
        ) from error
    return tensors


def _files(path: Path) -> list[Path]:
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    weight_map = json.loads(path.read_text())["weight_map"]
    return [path.parent / name for name in sorted(set(weight_map.values()))]


def _check(wanted: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    problems = [f"{name} missing" for name in wanted if name not in found]
    problems += [f"{name} unknown" for name in found if name not in wanted]
    problems += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in found and found[name].shape != tensor.shape
    ]
    if problems:
        shown = ", ".join(problems[:5])
        raise WeightsError(
            f"{path} does not fit the model in {len(problems)} keys: {shown}", "check the preset"
        )


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if any(part in name for part in FLOAT32_PARTS) else dtype)


def save_sharded(
    tensors: dict[str, Tensor], folder: Path, *, name: str = "joint", dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write `name`-00001-of-0000n.safetensors, 16 MiB at most each, and their index; returns its path."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for key, tensor in tensors.items():
        tensor = _cast(key, tensor.detach().cpu(), dtype).contiguous()
        if size + tensor.nbytes > MAX_SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file = f"{name}-{i:05}-of-{len(shards):05}.safetensors"
        save_file(shard, folder / file)
        weight_map.update(dict.fromkeys(shard, file))
    index = folder / f"{name}{INDEX_SUFFIX}"
    index.write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=1) + "\n"
    )
    return index
