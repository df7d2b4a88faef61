"""Faults of SPT's published prototype, one test each: they must not come back in any form of sparse attention."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from longspan import ops
from longspan.ops import AttentionPattern, TokenLayout

Form = Callable[..., Tensor]
HEADS, KEY_HEADS, DIM, PIECES, WORDS = 4, 2, 16, 2, 8


def codebook(dtype: torch.dtype, groups: int = 1) -> Tensor:
    made = torch.randn(groups, PIECES, WORDS, DIM // PIECES, generator=torch.Generator().manual_seed(7))
    return made.to(torch.float64 if dtype == torch.float64 else torch.float32)


def chosen(q: Tensor, k: Tensor, budget: int, causal: bool, layout: TokenLayout | None) -> ops.KeySelection:
    """The published selection: equal codes, nothing forced."""
    book = codebook(q.dtype)
    codes = [ops.pq_encode(x, book, power=1) for x in (q, k)]
    sizes = {"subspaces": PIECES, "codewords": WORDS}
    return ops.topl_threshold(codes[1], budget, query_codes=codes[0], causal=causal, layout=layout, **sizes)


def by_mask(
    q: Tensor, k: Tensor, v: Tensor, budget: int, causal: bool = True, layout: TokenLayout | None = None
) -> Tensor:
    pattern = AttentionPattern.selected(chosen(q, k, budget, causal, layout), causal)
    out = ops.attention(q, k, v, pattern, layout=layout)
    assert isinstance(out, Tensor)
    return out


def by_list(
    q: Tensor, k: Tensor, v: Tensor, budget: int, causal: bool = True, layout: TokenLayout | None = None
) -> Tensor:
    lists = ops.topl_indices(chosen(q, k, budget, causal, layout), budget, causal=causal, layout=layout)
    out = ops.list_attention(q, k, v, lists)
    assert isinstance(out, Tensor)
    return out


FORMS = pytest.mark.parametrize("form", [by_mask, by_list])


def draw(tokens: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    q, k, v = (torch.randn(2, h, tokens, DIM, generator=generator) for h in (HEADS, KEY_HEADS, KEY_HEADS))
    return (q * scale).to(dtype).requires_grad_(), (k * scale).to(dtype).requires_grad_(), v.to(dtype).requires_grad_()


def dense(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    k, v = (x.repeat_interleave(HEADS // KEY_HEADS, 1) for x in (k, v))
    return (q @ k.mT * DIM**-0.5).masked_fill(~mask, -torch.inf).softmax(-1).nan_to_num(0) @ v


def causal(tokens: int) -> Tensor:
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


@FORMS
def test_no_filler_counts_as_key_0(form: Form) -> None:
    """Lookup and softmax: rows with fewer keys than the budget were filled with key 0."""
    q, k, v = draw(64)
    torch.testing.assert_close(form(q, k, v, 8)[:, :, :8], dense(q, k, v, causal(64))[:, :, :8])


@FORMS
def test_rows_with_a_negative_sum_have_their_gradient(form: Form) -> None:
    """Softmax backward: the row term was floored at 1e-9."""
    tensors = draw(40)
    dout = -tensors[2].detach().repeat_interleave(HEADS // KEY_HEADS, 1)  # <dout, out> is negative in most rows
    out = form(*tensors, 40)
    assert float(((dout * out.detach()).sum(-1) < 0).double().mean()) > 0.5
    found = torch.autograd.grad(out, tensors, dout)
    right = torch.autograd.grad(dense(*tensors, causal(40)), tensors, dout)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other)


@FORMS
def test_large_scores_are_not_clamped(form: Form) -> None:
    """Scores: clamped to +-10, no maximum subtracted."""
    tensors = draw(40, scale=12.0)
    out, right = form(*tensors, 40), dense(*tensors, causal(40))
    torch.testing.assert_close(out, right)
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    pairs = zip(*(torch.autograd.grad(x, tensors, dout) for x in (out, right)), strict=True)
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)


def test_ties_lose_no_key_and_come_out_the_same() -> None:
    """Lookup overflow: equal counts spilled into other lanes' cells, in no order."""
    codes = torch.zeros(1, KEY_HEADS, 300, 1, dtype=torch.int32)
    query_codes = torch.zeros(1, HEADS, 300, 1, dtype=torch.int32)
    sizes = {"subspaces": PIECES, "codewords": WORDS}
    kept = [ops.topl_threshold(codes, 32, query_codes=query_codes, **sizes) for _ in range(2)]
    lists = [ops.topl_indices(one, 32) for one in kept]
    assert torch.equal(*lists)
    for row in (0, 5, 31, 32, 299):
        wanted = list(range(max(0, row - 31), row + 1))
        assert lists[0][0, 0, row].tolist() == wanted + [-1] * (32 - len(wanted))


@FORMS
def test_both_directions_with_padding(form: Form) -> None:
    """The BERT branch: selection stayed causal, padding was ignored."""
    q, k, v = draw(48)
    real = torch.ones(2, 48, dtype=torch.bool)
    real[0, :11] = False
    mask = (real[:, None] & real[:, :, None])[:, None]
    found = form(q, k, v, 48, causal=False, layout=TokenLayout.padded(real))
    torch.testing.assert_close(found, dense(q, k, v, mask))


@pytest.mark.parametrize("tokens", [1, 17, 77])
@FORMS
def test_odd_lengths_and_bfloat16(form: Form, tokens: int) -> None:
    """Types and shapes: float32 only, T in 256, 512, 1024, T a multiple of 16."""
    tensors = draw(tokens, torch.bfloat16)
    exact = dense(*(x.detach().double() for x in tensors), causal(tokens))
    rounded = dense(*(x.detach() for x in tensors), causal(tokens)).double()
    error, allowed = ((x - exact).abs().max() for x in (form(*tensors, tokens).double(), rounded))
    assert float(error) <= 2 * float(allowed) + 1e-6


def test_no_pull_at_distance_zero() -> None:
    """L1 backward: the sign of an exact zero was -1."""
    book = codebook(torch.float64).requires_grad_()
    z = book.detach()[:, :, 3].flatten()[None, None, None].repeat(1, 1, 5, 1)
    codes = ops.pq_encode(z, book, power=1)
    assert ops.unpack_codes(codes, PIECES, WORDS).unique().tolist() == [3]
    hard = ops.pq_decode(codes, book.detach())
    assert torch.equal(hard, z)
    (gradient,) = torch.autograd.grad(ops.pq_loss(z, book, codes, power=1), book)
    assert bool(torch.isfinite(gradient).all())
    # What is left is the soft codeword's share of the others, 1e-5 of the distances' inverse; a sign of -1 would pull
    # by 1.
    assert float(gradient.abs().max()) < 1e-4
