"""The nano caption encoder: a small transformer over the words that say who is seen, in what mood and where.

Axis letters: b batch, t caption tokens, d width.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from uniavgen_cli.errors import WeightsError
from uniavgen_cli.models.state_dict import load_module

PAD, UNKNOWN = 0, 1  # token ids before those of the vocabulary
NUM_SPECIAL = 2

# What is said in the clip is no description of it: everything between quotation marks is left out.
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|„[^“”]*[“”]|«[^»]*»|(?<!\w)'[^']*'(?!\w)|(?<!\w)‘[^’]*’(?!\w)")
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """Sizes of the caption encoder; raises ValueError when `dim` can't be split into the heads."""

    tokens: int = 48
    dim: int = 128
    num_layers: int = 2
    num_heads: int = 4

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ValueError(f"dim {self.dim} is not divisible by num_heads {self.num_heads}")


class CaptionEncoder(nn.Module):
    """Captions to one state a word; a word outside the vocabulary is one unknown word like any other."""

    def __init__(self, config: CaptionConfig, vocabulary: tuple[str, ...]) -> None:
        super().__init__()
        self.config = config
        self.vocabulary = vocabulary
        self._ids = {word: i + NUM_SPECIAL for i, word in enumerate(vocabulary)}
        self.words = nn.Embedding(len(vocabulary) + NUM_SPECIAL, config.dim)
        self.positions = nn.Embedding(config.tokens, config.dim)
        layers = [
            nn.TransformerEncoderLayer(
                config.dim,
                config.num_heads,
                dim_feedforward=2 * config.dim,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_layers)
        ]
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(config.dim)

    @classmethod
    def load(cls, path: Path, config: CaptionConfig) -> "CaptionEncoder":
        """The encoder at `path` and the vocabulary in it, float32; WeightsError when it does not fit."""
        try:
            with safe_open(path, framework="pt") as file:
                vocabulary = tuple(json.loads((file.metadata() or {})["vocabulary"]))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WeightsError(f"can't read the caption encoder {path}: {error!r}") from error
        return load_module(lambda: cls(config, vocabulary), path)

    def encode(self, captions: list[str]) -> Tensor:
        """States (b, t, d) of the captions' words, zero after the last; an empty caption is all zero."""
        return self(self.tokenize(captions))

    def tokenize(self, captions: list[str]) -> Tensor:
        """Token ids (b, t), int64: the first `config.tokens` words, then PAD."""
        tokens = torch.full((len(captions), self.config.tokens), PAD)
        for row, caption in zip(tokens, captions, strict=True):
            ids = [self._ids.get(word, UNKNOWN) for word in split_words(caption)][: self.config.tokens]
            row[: len(ids)] = torch.tensor(ids, dtype=torch.int64)
        return tokens.to(self.words.weight.device)

    def forward(self, tokens: Tensor) -> Tensor:
        """States (b, t, d) of token ids (b, t)."""
        here = tokens != PAD
        hidden = ~here
        hidden[:, 0] = False  # an empty caption attends to its own padding, so that nothing divides by zero
        x = self.words(tokens) + self.positions.weight[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=hidden)
        return self.norm(x) * here.unsqueeze(-1)


def split_words(caption: str) -> list[str]:
    """The caption's words, lower case, without punctuation and what stands between quotation marks."""
    return _WORD.findall(_QUOTED.sub(" ", caption).lower())
