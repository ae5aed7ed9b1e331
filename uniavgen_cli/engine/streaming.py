"""The joint model on a device that can't hold all of it: layers come from host memory as they are needed.

While one layer computes, the next one is copied on a stream of its own. Only where the weights are changes,
so the numbers do not.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from uniavgen_cli.models.uniavgen import UniAVGen


@contextmanager
def on_device_meanwhile(module: nn.Module, device: str) -> Iterator[None]:
    """A module's weights on `device` for as long as this lasts; the host's stay where they are."""
    with _Shelf(list(_tensors(module)), torch.device(device)):
        yield


@contextmanager
def streamed(model: UniAVGen, device: str) -> Iterator["Stream"]:
    """The joint model on `device` with at most two of its layers there at a time, and all of the rest."""
    stream = Stream(model, torch.device(device))
    in_layers = {id(tensor) for layer in layers_of(model) for tensor in _tensors(layer)}
    rest = [tensor for tensor in _tensors(model) if id(tensor) not in in_layers]
    with ExitStack() as stack:
        stack.enter_context(_Shelf(rest, torch.device(device)))
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


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


class Stream:
    """Brings each layer to the device before it runs, the one after it meanwhile, and lets the others go."""

    def __init__(self, model: UniAVGen, device: torch.device) -> None:
        layers = layers_of(model)
        self._shelves = [_Shelf(list(_tensors(layer)), device) for layer in layers]
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._here: set[int] = set()
        self.most_here = 0
        self._handles: list[Any] = []
        for i, layer in enumerate(layers):
            # all that may come first: a block can be left out, and the mask's head is called by itself
            for part in [*layer, *(part.mask_head for part in layer if hasattr(part, "mask_head"))]:
                self._handles.append(part.register_forward_pre_hook(lambda *_, i=i: self._need(i)))

    def _need(self, i: int) -> None:
        following = (i + 1) % len(self._shelves)  # after the last comes the next pass
        for other in self._here - {i, following}:
            self._shelves[other].put_back()
        self._here &= {i, following}
        if i not in self._here:
            self._fetch(i)
        if self._copies is not None:
            torch.cuda.current_stream().wait_stream(self._copies)
            self._shelves[i].used_on(torch.cuda.current_stream())
        if following not in self._here:
            self._fetch(following)

    def _fetch(self, i: int) -> None:
        if self._copies is None:
            self._shelves[i].take_down()
        else:
            with torch.cuda.stream(self._copies):
                self._shelves[i].take_down()
        self._here.add(i)
        self.most_here = max(self.most_here, len(self._here))

    def close(self) -> None:
        """Let everything go, and the model run by itself again."""
        for handle in self._handles:
            handle.remove()
        for i in self._here:
            self._shelves[i].put_back()
        self._here.clear()


class _Shelf:
    """Tensors that live in host memory and are lent to a device."""

    def __init__(self, tensors: list[Tensor], device: torch.device) -> None:
        self._tensors = tensors
        self._device = device
        self._host: list[Tensor] = []

    def take_down(self) -> None:
        # outside inference mode, so that what is lent is a weight like any other
        with torch.inference_mode(False), torch.no_grad():
            if self._device.type == "cuda":  # pinned, so that copies run beside the computation
                for tensor in self._tensors:
                    if tensor.device.type == "cpu" and not tensor.is_pinned():
                        tensor.data = tensor.data.pin_memory()
            self._host = [tensor.data for tensor in self._tensors]
            for tensor in self._tensors:
                tensor.data = tensor.data.to(self._device, non_blocking=True, copy=True)

    def used_on(self, stream: Any) -> None:
        """Say that `stream` reads what was copied on another: it must not be given away before."""
        for tensor in self._tensors:
            tensor.data.record_stream(stream)

    def put_back(self) -> None:
        with torch.inference_mode(False), torch.no_grad():
            for tensor, host in zip(self._tensors, self._host, strict=True):
                tensor.data = host
        self._host = []

    def __enter__(self) -> None:
        self.take_down()

    def __exit__(self, *error: object) -> None:
        self.put_back()
