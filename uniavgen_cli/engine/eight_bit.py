"""Weight-only 8-bit: the blocks' matrices as one byte a weight and one float32 scale a row.

torchao finds the numbers, symmetric and by row. They are held as plain tensors and multiplied out before each
product, because torchao's own tensor type passes autocast by, can't be joined with others to one projection
and can't be lent to a device (`streaming.py`).
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uniavgen_cli.codecs.released import hush
from uniavgen_cli.errors import UsageError
from uniavgen_cli.models import state_dict
from uniavgen_cli.models.state_dict import check_kind, check_weights, each_tensor

# Of the joint model both branches and what joins them, of umT5 its layers. Embeddings and heads stay as they
# are: they are small, and all that is seen and heard passes through them.
BLOCKS = ("blocks.", "audio_blocks.", "a2v_blocks.", "v2a_blocks.", "encoder.block.")
HEAD = ".head"  # ends the name of a face mask's Linear
FLOAT32_PARTS = (*state_dict.FLOAT32_PARTS, "row_scale")


class EightBitLinear(nn.Module):
    """In the place of a Linear: its matrix in 8 bits, multiplied out in `dtype` at every use."""

    packed: Tensor  # out in, int8
    row_scale: Tensor  # out 1, float32

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype = dtype
        shape, device = linear.weight.shape, linear.weight.device
        self.register_buffer("packed", torch.empty(shape, dtype=torch.int8, device=device))
        self.register_buffer("row_scale", torch.empty(shape[0], 1, dtype=torch.float32, device=device))
        self.bias = linear.bias

    @property
    def weight(self) -> Tensor:
        return (self.packed * self.row_scale).to(self.dtype)

    def hold(self, weight: Tensor) -> None:
        """Take a matrix (out, in) of any type; the numbers come to be on its device."""
        self.packed, self.row_scale = packed_rows(weight)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        return nn.functional.linear(x, self.weight, self.bias)


def installed() -> bool:
    """Whether torchao is there, which packs; running what is packed needs torch alone."""
    return find_spec("torchao") is not None


def packed_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A matrix (out, in) as int8 and the scales (out, 1), float32; UsageError without torchao."""
    hush()
    try:
        from torchao.quantization import MappingType, choose_qparams_affine, quantize_affine
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"8-bit weights need torchao, and it can't be loaded ({error})",
            "pip install 'uniavgen[released]', or --set runtime.memory=streamed",
        ) from error
    matrix, row = weight.float(), (1, weight.shape[1])
    scale, zero = choose_qparams_affine(
        matrix,
        MappingType.SYMMETRIC,
        row,
        torch.int8,
        eps=torch.finfo(torch.float32).eps,
        scale_dtype=torch.float32,
        zero_point_dtype=torch.int8,
    )
    return quantize_affine(matrix, row, scale, zero, torch.int8), scale.view(-1, 1)


def make_room(module: nn.Module, dtype: torch.dtype) -> None:
    """Put an empty EightBitLinear in the place of every Linear of the blocks, on the same device."""
    for name, part in list(module.named_modules()):
        if isinstance(part, nn.Linear) and name.startswith(BLOCKS) and not name.endswith(HEAD):
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, EightBitLinear(part, dtype))


def load_weights(
    module: nn.Module,
    path: Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    float32_parts: Sequence[str] = state_dict.FLOAT32_PARTS,
    file_key: Callable[[str], str] = str,
) -> None:
    """As `state_dict.load_weights`, with the blocks' matrices in 8 bits.

    Each is packed as it is read, on `device`: no more memory is needed than for the result and one matrix.
    """
    check_weights(module, path, file_key)
    wanted = module.state_dict()
    places: dict[str, list[str]] = {}
    for name in wanted:
        places.setdefault(file_key(name), []).append(name)
    make_room(module, dtype)
    for key, tensor in each_tensor(path, device):
        check_kind(path, key, tensor, wanted[places[key][0]])
        for name in places[key]:
            owner_name, _, leaf = name.rpartition(".")
            owner: Any = module.get_submodule(owner_name)
            if isinstance(owner, EightBitLinear) and leaf == "weight":
                owner.hold(tensor)
                continue
            in_float32 = any(part in key for part in float32_parts)
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float32 if in_float32 else dtype)
            is_parameter = leaf in owner._parameters
            setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False) if is_parameter else tensor)
