"""The joint model on a device that can't hold all of it: layers come from host memory as they are needed.

While one layer computes, the next one is copied on a stream of its own. Only where the weights are changes,
so the numbers do not. Not diffusers' group offloading: that expects the same modules in the same order in
every pass, and guidance leaves a block out of one of two; and it pins each tensor by itself, for which torch
takes the next power of two, at full size 1.6 times the bytes.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from uniavgen_cli.models.uniavgen import UniAVGen

ALIGNMENT = 512  # bytes at which a tensor begins in its layer's piece, as the allocator would have it


@contextmanager
def on_device_meanwhile(module: nn.Module, device: str) -> Iterator[None]:
    """A module's weights on `device` for as long as this lasts; the host's stay where they are."""
    with _lent(list(_tensors(module)), device):
        yield


@contextmanager
def streamed(model: UniAVGen, device: str) -> Iterator["Stream"]:
    """The joint model on `device` with at most two of its layers there at a time, and all of the rest."""
    in_layers = {id(tensor) for layer in layers_of(model) for tensor in _tensors(layer)}
    rest = [tensor for tensor in _tensors(model) if id(tensor) not in in_layers]
    with ExitStack() as stack:
        stack.enter_context(_lent(rest, device))
        stream = Stream(model, torch.device(device))
        stack.callback(stream.close)
        yield stream


def layers_of(model: UniAVGen) -> list[nn.ModuleList]:
    """What is streamed together: block i of both branches, and the interaction after it."""
    after = {block: i for i, block in enumerate(model.config.interaction_blocks)}
    layers = []
    for i, pair in enumerate(zip(model.blocks, model.audio_blocks, strict=True)):
        interaction = (
            [parts[after[i]] for parts in (model.a2v_blocks, model.v2a_blocks)] if i in after else []
        )
        layers.append(nn.ModuleList([*pair, *interaction]))
    return layers


def pinned_bytes(size: int) -> int:
    """What torch takes of host memory for a pinned piece of `size` bytes: the next power of two."""
    return 1 << (size - 1).bit_length() if size else 0


class Stream:
    """Brings each layer to the device before it runs, the one after it meanwhile, and lets the others go."""

    def __init__(self, model: UniAVGen, device: torch.device) -> None:
        layers = layers_of(model)
        self._device = device
        self._pieces = [_Piece(list(_tensors(layer)), device) for layer in layers]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copied: dict[int, Any] = {}  # of each layer that is here, the event after its copy
        self._now = -1
        self.most_here = 0
        self._handles: list[Any] = []
        for i, layer in enumerate(layers):
            # all that may come first: a block can be left out, and the mask's head is called by itself
            for part in [*layer, *(part.mask_head for part in layer if hasattr(part, "mask_head"))]:
                self._handles.append(part.register_forward_pre_hook(lambda *_, i=i: self._need(i)))

    def _need(self, i: int) -> None:
        if i == self._now:
            return
        following = (i + 1) % len(self._pieces)  # after the last comes the next pass
        self._let_go([other for other in self._copied if other not in (i, following)])
        if i not in self._copied:
            self._fetch(i)
        if self._copies is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied[i])
        if following not in self._copied:
            self._fetch(following)
        self._now = i

    def _fetch(self, i: int) -> None:
        if self._copies is None:
            self._pieces[i].lend()
            self._copied[i] = None
        else:
            with torch.cuda.stream(self._copies):
                self._pieces[i].lend()
                self._copied[i] = self._copies.record_event()
        self.most_here = max(self.most_here, len(self._copied))

    def _let_go(self, layers: Sequence[int]) -> None:
        if layers:
            self._wait()
        for i in layers:
            self._pieces[i].take_back()
            del self._copied[i]

    def _wait(self) -> None:
        """Until all that was asked of the device is computed.

        Python is far ahead of a GPU: without this it would ask for every layer before the first has run, and
        the allocator would hold them all, or give memory away that is still read.
        """
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def close(self) -> None:
        """Let everything go, and the model run by itself again."""
        for handle in self._handles:
            handle.remove()
        self._let_go(list(self._copied))


class _Piece:
    """A layer's tensors in one piece of host memory, pinned for a GPU, so that it is lent by one copy."""

    def __init__(self, tensors: list[Tensor], device: torch.device) -> None:
        self._tensors = tensors
        self._device = device
        self._host: Tensor | None = None

    def lend(self) -> None:
        with _outside_inference():
            if self._host is None:
                self._host = _in_one_piece(self._tensors, pinned=self._device.type == "cuda")
            self._point_into(self._host.to(self._device, non_blocking=True, copy=True))

    def take_back(self) -> None:
        assert self._host is not None
        with _outside_inference():
            self._point_into(self._host)

    def _point_into(self, piece: Tensor) -> None:
        for tensor, offset in zip(self._tensors, _offsets(self._tensors)[0], strict=True):
            tensor.data = _part(piece, offset, tensor)


def _in_one_piece(tensors: list[Tensor], *, pinned: bool) -> Tensor:
    """Bytes that hold all the tensors, which are moved there unless an earlier stream has done it."""
    offsets, size = _offsets(tensors)
    storage = tensors[0].untyped_storage()
    there = [(x.untyped_storage().data_ptr(), x.storage_offset() * x.element_size()) for x in tensors]
    if storage.nbytes() == size and there == [(storage.data_ptr(), offset) for offset in offsets]:
        return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage)
    piece = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    for tensor, offset in zip(tensors, offsets, strict=True):
        tensor.data = _part(piece, offset, tensor).copy_(tensor.data)
    return piece


def _offsets(tensors: list[Tensor]) -> tuple[list[int], int]:
    """Where each tensor begins in a piece, and the piece's bytes."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    return offsets, end


def _part(piece: Tensor, offset: int, like: Tensor) -> Tensor:
    return piece[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


@contextmanager
def _lent(tensors: list[Tensor], device: str) -> Iterator[None]:
    """Tensors on a device for as long as this lasts, and back when it ends or fails on the way."""
    host = [tensor.data for tensor in tensors]
    try:
        with _outside_inference():
            for tensor in tensors:
                tensor.data = tensor.data.to(device, copy=True)
        yield
    finally:
        with _outside_inference():
            for tensor, data in zip(tensors, host, strict=True):
                tensor.data = data


@contextmanager
def _outside_inference() -> Iterator[None]:
    """So that what is lent is a weight like any other."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
