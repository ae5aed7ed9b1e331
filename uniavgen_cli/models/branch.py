"""One branch of the joint model, video or audio: timestep modulation, attention, blocks, heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from uniavgen_cli.models.attention import attention
from uniavgen_cli.models.rope import frequencies

NORM_EPS = 1e-6


Samples = slice | Tensor  # samples of a batch, by a slice where they lie together


def pick_samples(flags: Sequence[bool]) -> Samples | None:
    """The samples whose flag is set, ready to index a batch with; None when there are none."""
    chosen = [i for i, flag in enumerate(flags) if flag]
    if not chosen:
        return None
    if chosen[-1] - chosen[0] + 1 == len(chosen):
        return slice(chosen[0], chosen[-1] + 1)
    return torch.tensor(chosen)


@dataclass(frozen=True)
class Modulation:
    """The timestep's embedding, once per distinct timestep, and who reads which.

    `embedding` (u, d), `six` (u, 6, d), both float32; `index` (b, s) says which row each step of a sample
    reads. A step is a latent frame of the video, a token of the audio, or all of a sample whose timesteps
    are equal.
    """

    embedding: Tensor
    six: Tensor
    index: Tensor

    def spread(self, rows: Tensor) -> Tensor:
        """(u, d) -> (b, s, 1, d), to be broadcast over a step's tokens."""
        return functional.embedding(self.index, rows).unsqueeze(2)

    def select(self, samples: Samples) -> "Modulation":
        return Modulation(self.embedding, self.six, self.index[samples])

    def last_steps(self, count: int) -> "Modulation":
        """The same for the last `count` steps of each sample."""
        index = self.index if self.index.shape[1] == 1 else self.index[:, -count:]
        return Modulation(self.embedding, self.six, index)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm(x) * (1 + scale) + shift, no affine, in float32; x (b, t, d), the others (b, s, 1, d)."""
    normed = functional.layer_norm(x.float(), x.shape[-1:], eps=NORM_EPS)
    normed = normed.unflatten(1, (shift.shape[1], -1))  # b (s n) d -> b s n d
    return torch.addcmul(shift, normed, 1 + scale).flatten(1, 2)


def add_gated(x: Tensor, gate: Tensor, update: Tensor) -> Tensor:
    """x + gate * update; x and update (b, t, d), gate (b, s, 1, d)."""
    steps = (gate.shape[1], -1)
    return torch.addcmul(x.unflatten(1, steps), gate, update.to(x.dtype).unflatten(1, steps)).flatten(1, 2)


def timestep_sinusoid(timesteps: Tensor, dim: int) -> Tensor:
    """[cos | sin] of timesteps (u,) in 0..1000: (u, dim) float32, computed in float64."""
    angles = torch.outer(timesteps.double(), frequencies(dim).to(timesteps.device))
    return torch.cat((angles.cos(), angles.sin()), dim=1).float()


def modulation_of(
    timesteps: Tensor, freq_dim: int, embed: nn.Sequential, project: nn.Sequential
) -> Modulation:
    """The modulation for timesteps (b, s); each distinct value is embedded once, in float32."""
    if (timesteps == timesteps[:, :1]).all():
        timesteps = timesteps[:, :1]
    values, index = timesteps.unique(return_inverse=True)
    with torch.autocast(timesteps.device.type, enabled=False):
        embedding = embed(timestep_sinusoid(values, freq_dim))
        six = project(embedding).unflatten(1, (6, -1))
    return Modulation(embedding, six, index)


class _NormRotate(torch.autograd.Function):
    """RMSNorm, head split and rotary turn in one: chained, they would pass over memory twice as often."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, table: Tensor | None, num_heads: int) -> Tensor:
        y = x.to(torch.float32, copy=True)  # once: what mixes types takes half as long again
        power = torch.linalg.vector_norm(y, dim=-1, keepdim=True).square_()
        rms = power.div_(x.shape[-1]).add_(NORM_EPS).rsqrt_()
        ctx.save_for_backward(x, rms, weight, table)
        y = y.mul_(rms).mul_(weight).unflatten(-1, (num_heads, -1))  # ... t h d
        if table is not None:
            torch.view_as_complex(y.unflatten(-1, (-1, 2))).mul_(table)
        heads_first = y.transpose(-3, -2)  # as attention reads it
        return _contiguous(heads_first, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, rms, weight, table = ctx.saved_tensors
        grad = _contiguous(grad.transpose(-3, -2), torch.float32)
        if table is not None:
            torch.view_as_complex(grad.unflatten(-1, (-1, 2))).mul_(table.conj())
        grad = grad.flatten(-2)
        normed = x.to(torch.float32, copy=True).mul_(rms)
        along = grad * normed
        grad_weight = along.flatten(0, -2).sum(0)
        mean = (along @ weight.float()).unsqueeze(-1) / x.shape[-1]
        grad_x = grad.mul_(weight).addcmul_(normed, mean, value=-1).mul_(rms)
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None, None


def _contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, cast and laid out in one go."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.contiguous_format).copy_(x)


def norm_rotate(x: Tensor, norm: nn.RMSNorm, num_heads: int, table: Tensor | None = None) -> Tensor:
    """RMSNorm over the full width, then the heads' pairs turned by `table` (t, 1, d / 2), if one is given.

    x (..., t, h * d) -> (..., t, h, d), computed in float32 and returned as x came.
    """
    return _NormRotate.apply(x, norm.weight, table, num_heads).transpose(-3, -2)


def project(x: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """Several projections of one input as one matrix product."""
    if any(hasattr(linear, "lora_A") for linear in linears):  # an adapter adds to what its layer gives
        return tuple(linear(x) for linear in linears)
    weight = torch.cat([linear.weight for linear in linears])
    bias = torch.cat([linear.bias for linear in linears])
    return functional.linear(x, weight, bias).chunk(len(linears), dim=-1)


class Projections(nn.Module):
    """The weights of every attention of the model: q and k pass an RMSNorm over the full width."""

    def __init__(self, dim: int, num_heads: int, context_dim: int | None = None, *, backend: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.backend = backend
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(context_dim or dim, dim)
        self.v = nn.Linear(context_dim or dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = nn.RMSNorm(dim, eps=NORM_EPS)
        self.norm_k = nn.RMSNorm(dim, eps=NORM_EPS)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_table: Tensor | None = None,
        k_table: Tensor | None = None,
        key_lengths: tuple[int, ...] | None = None,
    ) -> Tensor:
        """Projected q (b, t, h * d), k and v (b, s, h * d) -> (b, t, h * d), before `o`."""
        out = attention(
            norm_rotate(q, self.norm_q, self.num_heads, q_table).to(v.dtype),
            norm_rotate(k, self.norm_k, self.num_heads, k_table).to(v.dtype),
            v.unflatten(-1, (self.num_heads, -1)),
            key_lengths=key_lengths,
            backend=self.backend,
        )
        return out.flatten(2)


class SelfAttention(Projections):
    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """x (b, t, d) -> (b, t, d); `table` turns q and k."""
        q, k, v = project(x, self.q, self.k, self.v)
        return self.o(self.attend(q, k, v, table, table))


class CrossAttention(Projections):
    def forward(self, x: Tensor, text: "Text") -> Tensor:
        """x (b, t, d) reads the text -> (b, t, d)."""
        k, v = project(text.tokens, self.k, self.v)
        return self.o(self.attend(self.q(x), k, v, text.q_table, text.k_table, text.lengths))


@dataclass(frozen=True)
class Text:
    """What a branch's cross-attention reads: tokens (b, s, d), the keys per sample, and turns for q and k."""

    tokens: Tensor
    lengths: tuple[int, ...] | None = None
    q_table: Tensor | None = None
    k_table: Tensor | None = None

    def select(self, samples: Samples) -> "Text":
        lengths = None
        if self.lengths is not None:
            lengths = tuple(torch.tensor(self.lengths)[samples].tolist())
        return Text(self.tokens[samples], lengths, self.q_table, self.k_table)


@dataclass(frozen=True)
class Context:
    """What a branch's blocks read beside the states: modulation, text, turns of the self-attention."""

    time: Modulation
    table: Tensor
    text: Text

    def select(self, samples: Samples) -> "Context":
        return Context(self.time.select(samples), self.table, self.text.select(samples))


class Block(nn.Module):
    """Self-attention, text cross-attention and FFN with AdaLN-6; the same in both branches."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, *, backend: str) -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads, backend=backend)
        self.norm3 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.cross_attn = CrossAttention(dim, num_heads, backend=backend)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU("tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.empty(1, 6, dim))

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x (b, t, d) float32 -> the same shape."""
        time = context.time
        rows = self.modulation.float() + time.six  # u 6 d
        shift1, scale1, gate1, shift2, scale2, gate2 = (time.spread(row) for row in rows.unbind(1))
        x = add_gated(x, gate1, self.self_attn(modulate(x, shift1, scale1), context.table))
        x = x + self.cross_attn(self.norm3(x), context.text)
        return add_gated(x, gate2, self.ffn(modulate(x, shift2, scale2)))


def run_block(block: nn.Module, x: Tensor, context: Context, runs: Sequence[bool]) -> Tensor:
    """The block, for the samples that run it; the others pass unchanged."""
    if all(runs):
        return block(x, context)
    out = x.clone()
    if (samples := pick_samples(runs)) is not None:
        out[samples] = block(x[samples], context.select(samples))
    return out


class Head(nn.Module):
    """Modulated LayerNorm and one Linear: the end of both branches, and of each layer's face mask."""

    def __init__(self, dim: int, out_dim: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, out_dim)
        self.modulation = nn.Parameter(torch.empty(1, 2, dim))

    def forward(self, x: Tensor, time: Modulation) -> Tensor:
        """x (b, t, d) -> (b, t, out_dim)."""
        rows = self.modulation.float() + time.embedding.unsqueeze(1)  # u 2 d
        shift, scale = (time.spread(row) for row in rows.unbind(1))
        return self.head(modulate(x, shift, scale))


class PatchEmbedding(nn.Conv3d):
    """Latents (b, c, f, h, w) -> tokens (b, f*h*w, d) of patches, float32; rows first within a frame."""

    def __init__(self, channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(channels, dim, patch, patch)

    def forward(self, latents: Tensor) -> Tensor:
        return super().forward(latents).flatten(2).transpose(1, 2).float()  # b d f h w -> b (f h w) d


def unpatchify(x: Tensor, shape: tuple[int, int, int], patch: tuple[int, int, int]) -> Tensor:
    """Tokens (b, f*h*w, prod(patch)*c) -> latents (b, c, f, h, w) in pixels of the latent."""
    x = x.unflatten(1, shape).unflatten(-1, (*patch, x.shape[-1] // prod(patch)))
    x = x.permute(0, 7, 1, 4, 2, 5, 3, 6)  # b f h w pf ph pw c -> b c f pf h ph w pw
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)
