"""What a call would allocate and compute, counted on tensors that have shapes and no values.

The call's own code runs, under torch's FakeTensorMode; nothing is estimated but what a fused attention kernel
keeps inside. So a number here changes when the code does, and needs neither weights nor a GPU.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from uniavgen_cli.models import interaction, rope, speech_text

DISTINCT_TIMESTEPS = 2  # of a stream: 0 where it is given, and the step's own
_CACHES = (
    rope.sequence_table,
    rope.video_table,
    rope.window_table,
    speech_text.position_table,
    interaction._windows,
    interaction._groups,
)


@dataclass(frozen=True)
class Counted:
    """What a call allocates at most beside its inputs, and its floating-point operations, by kind."""

    peak_bytes: int
    flops: int
    flops_by_kind: dict[str, int]


@contextmanager
def without_values() -> Iterator[None]:
    """In here tensors have shapes and no values; tables that the model keeps are made anew after it."""
    for cached in _CACHES:
        cached.cache_clear()
    try:
        with FakeTensorMode(), torch.device("cpu"):
            yield
    finally:
        for cached in _CACHES:
            cached.cache_clear()


def count(call: Callable[[], Any]) -> Counted:
    """Run `call` inside `without_values` and count."""
    with torch.inference_mode(), _Values(), FlopCounterMode(display=False) as flops, _Live() as live:
        result = call()  # kept until the peak is read, as its caller would
    del result
    kinds = {str(kind).rpartition(".")[2]: n for kind, n in flops.get_flop_counts().get("Global", {}).items()}
    return Counted(live.peak, flops.get_total_flops(), kinds)


def with_shapes_only(module: nn.Module, dtype_of: Callable[[str, Tensor], torch.dtype]) -> nn.Module:
    """A module built on the meta device, ready to run inside `without_values`, each tensor of its dtype."""
    for prefix, part in module.named_modules():
        for store in (part._parameters, part._buffers):
            for key, tensor in list(store.items()):
                if tensor is None:
                    continue
                empty = torch.empty(tensor.shape, dtype=dtype_of(f"{prefix}.{key}".lstrip("."), tensor))
                is_parameter = isinstance(tensor, nn.Parameter)
                store[key] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
    return module.eval()


class _Values(TorchFunctionMode):
    """Answers what depends on values: how many timesteps there are, and which kernel attention runs."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            return _fused_attention(*args, mask=kwargs.get("attn_mask"))
        if function is Tensor.unique:
            index = torch.empty(args[0].shape, dtype=torch.int64)
            return torch.empty(DISTINCT_TIMESTEPS, dtype=args[0].dtype), index
        if function is Tensor.__bool__:
            return False  # not all timesteps are equal
        out = function(*args, **kwargs)
        # Short lists, such as the samples' text lengths, are made tensors to be picked from, and lists again.
        if function is torch.tensor and isinstance(args[0], list | tuple):
            out.tolist = lambda: list(args[0])
        elif function is Tensor.__getitem__ and "tolist" in vars(args[0]):
            known, picked = args[0].tolist(), args[1]
            out.tolist = lambda: (
                known[picked] if isinstance(picked, slice) else [known[i] for i in picked.tolist()]
            )
        return out


def _fused_attention(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None) -> Tensor:
    """Attention as the fused kernels run it: the scores are never written down."""
    kernels = torch.ops.aten
    if mask is None:
        return kernels._scaled_dot_product_flash_attention.default(q, k, v)[0]
    bias = mask.to(q.dtype).expand(*q.shape[:3], k.shape[2])
    return kernels._scaled_dot_product_efficient_attention.default(q, k, v, bias, False)[0]


class _Live(TorchDispatchMode):
    """Bytes of the storages that are alive, as they come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs: set[int] = set()
        tree_map_only(Tensor, lambda x: inputs.add(x.untyped_storage()._cdata), (args, kwargs or {}))
        out = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda x: self._came(x, inputs), out)
        return out

    def _came(self, tensor: Tensor, inputs: set[int]) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._alive or key in inputs:  # seen, or a view of something that was there before
            return
        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.ref(storage, lambda _: self._went(key, size))

    def _went(self, key: int, size: int) -> None:
        self.now -= size
        del self._alive[key]
