"""The one attention function: its backends agree, and so do its ways."""

import importlib.util

import pytest
import torch
from torch.nn import functional

from uniavgen_cli.models.attention import attention
from uniavgen_cli.models.branch import norm_rotate
from uniavgen_cli.models.rope import sequence_table


def heads(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_key_lengths_hide_the_keys_behind_them() -> None:
    q, k, v = heads(2, 5, 3, 8), heads(2, 7, 3, 8), heads(2, 7, 3, 8)
    out = attention(q, k, v, key_lengths=(4, 7))
    assert torch.allclose(out[:1], attention(q[:1], k[:1, :4], v[:1, :4]), atol=1e-6)
    assert torch.allclose(out[1:], attention(q[1:], k[1:], v[1:]), atol=1e-6)
    assert torch.allclose(attention(q, k, v, key_lengths=(4, 4)), attention(q, k[:, :4], v[:, :4]), atol=1e-6)


def test_plain_formula() -> None:
    q, k, v = heads(1, 5, 2, 8), heads(1, 7, 2, 8), heads(1, 7, 2, 8)
    weights = (torch.einsum("bthd,bshd->bhts", q, k) / 8**0.5).softmax(-1)
    assert torch.allclose(attention(q, k, v), torch.einsum("bhts,bshd->bthd", weights, v), atol=1e-6)


def test_training_in_bfloat16_agrees_with_inference() -> None:
    q, k, v = (heads(2, length, 3, 8).bfloat16() for length in (5, 7, 9))
    v = v[:, :7]
    plain = attention(q, k, v, key_lengths=(4, 7))
    trained = attention(q.requires_grad_(), k, v, key_lengths=(4, 7))
    assert torch.allclose(plain.float(), trained.float(), atol=2e-2)
    trained.float().square().sum().backward()
    assert q.grad is not None and q.grad.isfinite().all()


@pytest.mark.parametrize("turned", [True, False])
def test_norm_rotate_and_its_gradient(turned: bool) -> None:
    x, norm = heads(2, 5, 24).requires_grad_(), torch.nn.RMSNorm(24, eps=1e-6)
    torch.nn.init.normal_(norm.weight)
    table = sequence_table(8, 5, torch.device("cpu")) if turned else None
    expected = functional.rms_norm(x, (24,), norm.weight, 1e-6).unflatten(-1, (3, 8))
    if table is not None:
        pairs = torch.view_as_complex(expected.unflatten(-1, (-1, 2)))
        expected = torch.view_as_real(pairs * table).flatten(-2)
    ours = norm_rotate(x, norm, 3, table)
    assert torch.allclose(ours, expected, atol=1e-6)
    weights = heads(2, 5, 3, 8)
    wanted = torch.autograd.grad((expected * weights).sum(), (x, norm.weight))
    found = torch.autograd.grad((ours * weights).sum(), (x, norm.weight))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, wanted, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("xformers") is None, reason="needs xformers")
def test_xformers_agrees_with_sdpa() -> None:
    q, k, v = (heads(2, length, 3, 64).cuda().bfloat16() for length in (5, 7, 8))
    v = v[:, :7]
    for lengths in (None, (4, 7)):
        ours = attention(q, k, v, key_lengths=lengths, backend="xformers")
        theirs = attention(q, k, v, key_lengths=lengths)
        assert torch.allclose(ours.float(), theirs.float(), atol=2e-2)
