"""Inputs and runs that the attention tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longspan.ops import AttentionPattern, attention
from longspan.ops.reference.attention import attention as reference
from longspan.ops.reference.attention import masked_scores


def inputs(
    B: int, H: int, K: int, T: int, D: int, S: int | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """q [B,H,T,D], k and v [B,K,S,D] as transformers gives them: views of [B,tokens,heads,D] storage."""
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int, tokens: int) -> Tensor:
        x = torch.randn(B, tokens, heads, D, generator=generator, dtype=torch.float64)
        return x.to(dtype).transpose(1, 2)

    S = T if S is None else S
    return draw(H, T), draw(K, S), draw(K, S)


def functional(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Fixed random gradients of out [B,H,T,D] and lse [B,H,T]; out's are rounded to the dtype of the inputs."""
    shape = tensors[0].shape
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).to(tensors[0].dtype)
    lse_weight = torch.randn(shape[:3], generator=generator, dtype=torch.float64).float()
    return weight.to(dtype), lse_weight.to(dtype)


def run(
    function: Callable[..., Any], tensors: tuple[Tensor, ...], dtype: torch.dtype, *args: Any, **kwargs: Any
) -> dict:
    """out, lse and the gradients of a fixed random linear functional of both."""
    q, k, v = (x.detach().to(dtype).requires_grad_() for x in tensors)
    out, lse = function(q, k, v, *args, **kwargs)
    weight, lse_weight = functional(tensors, lse.dtype)
    weight = weight.to(out.dtype)
    finite = torch.where(torch.isinf(lse), 0.0, lse)
    total = (out * weight).sum() + (finite * lse_weight).sum()
    dq, dk, dv = torch.autograd.grad(total, (q, k, v), materialize_grads=True)
    return {"out": out.detach(), "lse": lse.detach(), "dq": dq, "dk": dk, "dv": dv}


def ours(tensors: tuple[Tensor, ...], pattern: AttentionPattern, **kwargs: Any) -> dict:
    """Our op with its log-sum-exp, forward and backward."""
    return run(attention, tensors, tensors[0].dtype, pattern, return_lse=True, **kwargs)


def oracle(tensors: tuple[Tensor, ...], dtype: torch.dtype, pattern: AttentionPattern, **kwargs: Any) -> dict:
    """The dense reference in `dtype`."""
    return run(reference, tensors, dtype, pattern, **kwargs)


def torchs(tensors: tuple[Tensor, ...], pattern: AttentionPattern, **kwargs: Any) -> dict:
    """What the error law compares with: the reference in the same dtype, float32 for float64 (see tests.laws)."""
    dtype = tensors[0].dtype
    return oracle(tensors, torch.float32 if dtype == torch.float64 else dtype, pattern, **kwargs)


def by_row_sums(tensors: tuple[Tensor, ...], pattern: AttentionPattern, **kwargs: Any) -> dict:
    """The reference in the dtype of the inputs, its backward with row sums dout . out as every fused attention has it.

    Autograd sums p dp instead, whose rounding cancels against dp's in rows of a few keys; a formula that keeps no p
    cannot follow it there (Dao 2023, arXiv 2307.08691, 2.3).
    """

    def function(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        scores, empty = masked_scores(q, k, pattern, **kwargs)
        lse = torch.logsumexp(scores, -1).masked_fill(empty[..., 0], float("-inf"))
        with torch.no_grad():
            out, _ = reference(q, k, v, pattern, **kwargs)
            sums = (out * functional(tensors, out.dtype)[0]).sum(-1, keepdim=True)
        p = _SoftmaxByRowSums.apply(scores, sums)
        v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
        return (p @ v).masked_fill(empty, 0.0), lse

    return run(function, tensors, tensors[0].dtype)


class _SoftmaxByRowSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, sums: Tensor) -> Tensor:
        p = torch.softmax(scores, -1)
        ctx.save_for_backward(p, sums)
        return p

    @staticmethod
    def backward(ctx: Any, dp: Tensor) -> tuple[Tensor, None]:
        p, sums = ctx.saved_tensors
        return p * (dp - sums), None


def assert_same_bits(a: dict, b: dict) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs by {(a[name] - b[name]).abs().max():.3e}"
