"""The one attention function, over xformers or torch's own kernels."""

import torch
from torch import Tensor
from torch.nn import functional

BACKENDS = ("sdpa", "xformers")


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    backend: str = "sdpa",
    key_lengths: tuple[int, ...] | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over heads.

    q (b, t, h, d), k and v (b, s, h, d) -> (b, t, h, d). `key_lengths` says how many keys each sample sees,
    its first ones; None means all.
    """
    if key_lengths is not None and len(set(key_lengths)) == 1:  # nothing to mask: cut instead
        k, v, key_lengths = k[:, : key_lengths[0]], v[:, : key_lengths[0]], None
    if backend == "xformers":
        return _xformers(q, k, v, key_lengths)
    mask = None
    if key_lengths is not None:
        lengths = torch.tensor(key_lengths, device=k.device)
        mask = (torch.arange(k.shape[1], device=k.device) < lengths[:, None])[:, None, None]  # b 1 1 s
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # b h t d
    if q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        return _products(q, k, v, mask).transpose(1, 2)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The same as two products: in bfloat16 the backward of torch's CPU kernel is 3 to 20 times slower."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v


def _xformers(q: Tensor, k: Tensor, v: Tensor, key_lengths: tuple[int, ...] | None) -> Tensor:
    from xformers import ops

    if key_lengths is None:
        return ops.memory_efficient_attention(q, k, v)
    batch, tokens = q.shape[:2]
    mask = ops.fmha.attn_bias.BlockDiagonalMask
    bias = mask.from_seqlens([tokens] * batch, list(key_lengths), device=q.device)  # else on the first GPU
    k, v = (torch.cat([x[i, :n] for i, n in enumerate(key_lengths)])[None] for x in (k, v))
    return ops.memory_efficient_attention(q.flatten(0, 1)[None], k, v, attn_bias=bias).view_as(q)
