"""Weights in and out of files: strict, tensors only, built on the meta device first.

The joint model's modules carry the released checkpoint's names, so its files need no map; the released codecs
have one, `file_key`, from a module's name to the name in the file. Every complaint uses the file's own names.
"""

import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from uniavgen_cli.errors import WeightsError, ran_out_of_memory

INDEX_SUFFIX = ".safetensors.index.json"
PICKLES = (".pth", ".pt", ".bin")
FLOAT32_PARTS = ("time_", "modulation", "norm")  # small, and computed in float32 whatever the rest is
MAX_SHARD_BYTES = 15 * 2**20  # with its header a file stays under 16 MiB

Module = TypeVar("Module", bound=nn.Module)
Shape = tuple[int, ...]


def load_module(
    build: Callable[[], Module],
    path: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    float32_parts: Sequence[str] = FLOAT32_PARTS,
    file_key: Callable[[str], str] = str,
) -> Module:
    """The module `build()` makes, with the weights at `path`: .safetensors, an index of shards, or .pth.

    Every key must be there with its shape, and no other; raises WeightsError naming the first five that are
    not. Parameters are `dtype`, less those with one of `float32_parts` in their names, which stay float32.
    """
    with torch.device("meta"):
        module = build()
    load_weights(module, path, device=device, dtype=dtype, float32_parts=float32_parts, file_key=file_key)
    return module.eval()


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    float32_parts: Sequence[str] = FLOAT32_PARTS,
    file_key: Callable[[str], str] = str,
) -> None:
    """Give a module that is built the weights at `path`, as strictly as `load_module`.

    Nothing is read before all of it is known to fit, and then a tensor at a time, straight to its place and
    type: the memory needed is the module's own.
    """
    check_weights(module, path, file_key)
    wanted, state = module.state_dict(), {}
    places: dict[str, list[str]] = {}  # two modules may share one tensor of the file
    for name in wanted:
        places.setdefault(file_key(name), []).append(name)
    for key, tensor in each_tensor(path, device):
        check_kind(path, key, tensor, wanted[places[key][0]])
        state.update(dict.fromkeys(places[key], _cast(key, tensor, dtype, float32_parts)))
    module.load_state_dict(state, assign=True)


def check_weights(module: nn.Module, path: Path, file_key: Callable[[str], str] = str) -> None:
    """Raise WeightsError unless the file has the module's keys and shapes; reads its headers alone."""
    wanted = {file_key(name): tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    _compare(wanted, read_shapes(path), path)


def check_kind(path: Path, key: str, tensor: Tensor, wanted: Tensor) -> None:
    """Raise WeightsError for whole numbers where the module has fractions, or the other way round."""
    if tensor.is_floating_point() != wanted.is_floating_point():
        found, right = (str(one.dtype).removeprefix("torch.") for one in (tensor, wanted))
        raise WeightsError(
            f"{path} holds {key} as {found}, which can't be read as {right}",
            "it was quantised or converted: fetch the released file",
        )


def weights_in(folder: Path) -> Path:
    """The one file in a folder that weights are read from: an index, a .safetensors file, or a .bin."""
    for pattern in (f"*{INDEX_SUFFIX}", "*.safetensors", "*.bin"):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise WeightsError(f"{folder} holds no .safetensors file", "fetch it again")


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` that diffusers or transformers wrote beside the weights; raises WeightsError."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no mapping")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} can't be read ({error})", "fetch it again") from error
    return values


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Tensor]:
    """All tensors of a file, or of the shards an index names."""
    return dict(each_tensor(path, device))


def each_tensor(path: Path, device: str = "cpu") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file, or of the shards an index names, read one by one."""
    for file in _files(path):
        if file.suffix in PICKLES:
            for name, tensor in _unpickled(file).items():
                # a copy: a file that is written anew would take the ground from under a mapped tensor
                yield name, tensor.to(device, copy=True)
            continue
        try:
            with safe_open(file, framework="pt", device=device) as shard:
                for name in shard.keys():
                    yield name, shard.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _unreadable(file, error) from error


def read_shapes(path: Path) -> dict[str, Shape]:
    """The shape of each tensor of a file, or of the shards an index names, from headers alone."""
    shapes: dict[str, Shape] = {}
    for file in _files(path):
        if file.suffix in PICKLES:
            found = {name: tuple(tensor.shape) for name, tensor in _unpickled(file).items()}
        else:
            try:
                with safe_open(file, framework="pt") as shard:
                    found = {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}
            except (OSError, SafetensorError) as error:
                raise _unreadable(file, error) from error
        if twice := sorted(shapes.keys() & found):
            raise WeightsError(
                f"{file} holds {', '.join(twice[:5])}, as another shard does", "fetch all of them again"
            )
        shapes |= found
    return shapes


def _files(path: Path) -> list[Path]:
    """The files that hold the tensors: `path` itself, or what it is the index of."""
    if not path.name.endswith(INDEX_SUFFIX):
        return [path]
    try:
        names = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
        if any(Path(name).name != name for name in names):
            raise ValueError("a shard is not beside it")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error
    files = [path.parent / name for name in names]
    if missing := [file.name for file in files if not file.is_file()]:
        raise WeightsError(
            f"{path} can't be read as weights: {len(missing)} of its {len(files)} shards missing, "
            f"{', '.join(missing[:5])}",
            "the download is incomplete: fetch them again",
        )
    return files


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, left on the disk until they are used; nothing in it is ever run."""
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} holds code or other things that are no tensors, and none of it was run",
            "it is not the released file: fetch it again",
        ) from error
    except Exception as error:  # damaged bytes raise all sorts
        if ran_out_of_memory(error):
            raise
        raise _unreadable(path, error) from error
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in tensors.items()
    ):
        raise WeightsError(f"{path} is no flat table of tensors by name", "it is not the released file")
    return tensors


def _unreadable(path: Path, error: Exception) -> WeightsError:
    reason = "it is not there" if isinstance(error, FileNotFoundError) else _first_line(error)
    return WeightsError(
        f"{path} can't be read as weights ({reason})", "it is incomplete or damaged: fetch it again"
    )


def _first_line(error: Exception) -> str:
    if isinstance(error, LookupError | TypeError | AttributeError):  # their words are about Python
        return "it holds no table of tensors"
    text = str(error).partition("\n")[0].partition(". ")[0]
    return text if 0 < len(text) < 120 else type(error).__name__


def _compare(wanted: dict[str, Shape], found: dict[str, Shape], path: Path) -> None:
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted]
    other = [name for name in wanted if name in found and found[name] != wanted[name]]
    if not (missing or unknown or other):
        return
    problems = [f"{name} missing" for name in missing] + [f"{name} unknown" for name in unknown]
    problems += [f"{name} is {found[name]}, not {wanted[name]}" for name in other]
    if len(missing) == len(wanted):
        cause = "it is another model's file"
    elif other:
        cause = "the sizes in the preset are not those of these weights"
    elif missing and unknown:
        cause = "keys were renamed: it is of another version, or was converted"
    elif missing:
        cause = "a part of it was not saved or not fetched"
    else:
        cause = "it is of another version, or was trained with something more"
    raise WeightsError(
        f"{path} does not fit the model in {len(problems)} keys: {', '.join(problems[:5])}", f"likely {cause}"
    )


def _cast(name: str, tensor: Tensor, dtype: torch.dtype, float32_parts: Sequence[str]) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    return tensor.to(torch.float32 if any(part in name for part in float32_parts) else dtype)


def save_sharded(
    tensors: dict[str, Tensor], folder: Path, *, name: str = "joint", dtype: torch.dtype = torch.bfloat16
) -> Path:
    """Write `name`-00001-of-0000n.safetensors, 16 MiB at most each, and their index; returns its path."""
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for key, tensor in tensors.items():
        tensor = _cast(key, tensor.detach().cpu(), dtype, FLOAT32_PARTS).contiguous()
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
