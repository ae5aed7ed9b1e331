"""Codecs: pictures, sound and captions to the arrays the joint model reads, and back.

Nano's and the released checkpoint's are told apart by nobody who uses them: these are the interfaces.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class PictureCodec(Protocol):
    """A video VAE: `encode` refuses what is not 1 + 4k frames of sides that are multiples of 16."""

    def encode(self, frames: "Tensor") -> "Tensor":
        """Normalised latents (b, c, 1 + k, h/16, w/16) of frames (b, 3, 1 + 4k, h, w) in [-1, 1]."""
        ...

    def decode(self, latents: "Tensor") -> "Tensor":
        """The inverse, clamped to [-1, 1]."""
        ...

    def parameters(self) -> "Iterator[nn.Parameter]":
        """Its weights, which tell the device it is on."""
        ...


class SoundCodec(Protocol):
    """A vocoder."""

    def decode(self, mels: "Tensor") -> "Tensor":
        """24 kHz sound (b, t*240) in [-1, 1], float32, of normalised mels (b, t, 80)."""
        ...


class CaptionReader(Protocol):
    """A caption encoder."""

    def encode(self, captions: list[str]) -> "Tensor":
        """States (b, tokens, d), zero after the last token of each caption."""
        ...
