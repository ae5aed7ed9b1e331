"""What is said: the speech-text encoder of characters, and phonemes placed on the audio tokens."""

from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional

from uniavgen_cli.models.branch import NORM_EPS
from uniavgen_cli.models.rope import frequencies

MIN_KEYS = 10  # shorter text is padded with filler to this, and all of it is keys
CONV_KERNEL = 7
EXPANSION = 2


class GlobalResponseNorm(nn.Module):
    """GRN of ConvNeXt V2 (arXiv 2301.00808) over the sequence; rows with `counted` 0 stay out of the norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, dim))

    def forward(self, x: Tensor, counted: Tensor) -> Tensor:
        """x (b, s, d), counted (b, s, 1)."""
        norm = (x.float() * counted).norm(dim=1, keepdim=True)
        return self.gamma * (x * (norm / (norm.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + x


class TextBlock(nn.Module):
    """ConvNeXt V2 block on a text sequence (b, s, d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, CONV_KERNEL, padding=CONV_KERNEL // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(dim, EXPANSION * dim)
        self.grn = GlobalResponseNorm(EXPANSION * dim)
        self.pwconv2 = nn.Linear(EXPANSION * dim, dim)

    def forward(self, x: Tensor, counted: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x.transpose(1, 2)).transpose(1, 2))
        return x + self.pwconv2(self.grn(functional.gelu(self.pwconv1(y)), counted))


@lru_cache(maxsize=16)
def position_table(length: int, dim: int, device: torch.device) -> Tensor:
    """[cos | sin] of the positions, (length, dim) float32."""
    with torch.inference_mode(False):  # cached for training as well as for sampling
        positions = torch.arange(length, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, frequencies(dim))
        return torch.cat((angles.cos(), angles.sin()), dim=1).float().to(device)


class SpeechTextEncoder(nn.Module):
    """Characters to text states; row 0 of the table is filler."""

    def __init__(self, vocab: int, dim: int, num_blocks: int) -> None:
        super().__init__()
        self.text_embed = nn.Embedding(vocab + 1, dim)
        self.text_blocks = nn.ModuleList(TextBlock(dim) for _ in range(num_blocks))

    def forward(self, indices: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """indices (b, s) with -1 for filler, of which the first `lengths` count -> (b, s, dim)."""
        places = torch.arange(indices.shape[1], device=indices.device)
        counted = (places < torch.tensor(lengths, device=indices.device)[:, None])[..., None].float()
        spoken = ((indices >= 0)[..., None] * counted).float()
        x = self.text_embed(indices + 1)
        x = (x + position_table(indices.shape[1], x.shape[-1], x.device)) * spoken
        for block in self.text_blocks:
            x = block(x, counted) * spoken
        return x


class PlacedPhonemes(nn.Module):
    """Phonemes placed on the audio tokens at their times, each seeing its neighbours; id 0 is no phoneme.

    Of a model that knows `manners` of speaking, of which 0 is none, an id is phoneme + vocab * manner.
    """

    def __init__(self, vocab: int, dim: int, manners: int = 0) -> None:
        super().__init__()
        self.vocab = vocab
        self.manner = nn.Embedding(manners, dim, padding_idx=0) if manners else None
        self.embedding = nn.Embedding(vocab, dim, padding_idx=0)
        self.conv = nn.Conv1d(dim, dim, CONV_KERNEL, padding=CONV_KERNEL // 2, groups=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, phonemes: Tensor) -> Tensor:
        """phonemes (b, t) -> (b, t, dim), to be added to the audio tokens."""
        x = self.embedding(phonemes % self.vocab)
        x = x + self.conv(x.transpose(1, 2)).transpose(1, 2)
        x = self.proj(functional.silu(x))
        return x if self.manner is None else x + self.manner(phonemes // self.vocab)


def pad_tokens(texts: list[list[int]]) -> tuple[Tensor, tuple[int, ...]]:
    """Indices (b, s) padded with -1, and the keys of each text: its length, at least 10."""
    lengths = tuple(max(MIN_KEYS, len(text)) for text in texts)
    rows = [text + [-1] * (max(lengths) - len(text)) for text in texts]
    return torch.tensor(rows, dtype=torch.int64), lengths
