"""Inputs and runs that the attention tests share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from longspan.ops import AttentionPattern, TokenLayout, attention
from longspan.ops.reference.attention import attention as reference
from longspan.ops.reference.attention import visible
from torch import Tensor


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
    ((out * weight).sum() + (finite * lse_weight).sum()).backward()
    return {"out": out.detach(), "lse": lse.detach(), "dq": q.grad, "dk": k.grad, "dv": v.grad}


def ours(tensors: tuple[Tensor, ...], pattern: AttentionPattern, **kwargs: Any) -> dict:
    """Our op with its log-sum-exp, forward and backward."""
    return run(attention, tensors, tensors[0].dtype, pattern, return_lse=True, **kwargs)


def oracle(tensors: tuple[Tensor, ...], dtype: torch.dtype, pattern: AttentionPattern, **kwargs: Any) -> dict:
    """The dense reference in `dtype`."""
    return run(reference, tensors, dtype, pattern, **kwargs)


def torchs(
    tensors: tuple[Tensor, ...],
    pattern: AttentionPattern,
    *,
    layout: TokenLayout | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    model_window: int | None = None,
) -> dict:
    """What the error law compares with: the published formulas (FlashAttention-2, section 2.3) in torch's arithmetic.

    In the dtype of the inputs, float32 for float64 (see tests.laws). The backward is written out, because autograd's
    softmax gradient cancels differently from P * (dP - rowsum(dO * O)), which every fused attention uses.
    """
    dtype = torch.float32 if tensors[0].dtype == torch.float64 else tensors[0].dtype
    weight, lse_weight = functional(tensors, dtype)
    q, k, v = (x.detach().to(dtype) for x in tensors)
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, 1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    mask = visible(pattern, q.shape[1], q.shape[2], k.shape[2], layout, model_window)
    scores = q @ k.transpose(-1, -2) * scale
    tanh = torch.tanh(scores / softcap) if softcap else None
    scores = (scores if tanh is None else softcap * tanh).masked_fill(~mask, float("-inf"))
    lse = torch.logsumexp(scores, -1) if k.shape[2] else scores.new_zeros(scores.shape[:3])
    p = torch.exp(scores - torch.where(torch.isinf(lse), 0.0, lse)[..., None])
    out = p @ v
    ds = p * (weight @ v.transpose(-1, -2) - (weight * out).sum(-1, keepdim=True) + lse_weight.to(dtype)[..., None])
    if tanh is not None:
        ds = ds * (1 - tanh.square())

    def over_group(x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, groups)).sum(2)

    dk, dv = over_group(ds.transpose(-1, -2) @ q * scale), over_group(p.transpose(-1, -2) @ weight)
    return {"out": out, "lse": lse, "dq": ds @ k * scale, "dk": dk, "dv": dv}


def assert_same_bits(a: dict, b: dict) -> None:
    for name in a:
        assert torch.equal(a[name], b[name]), f"{name} differs by {(a[name] - b[name]).abs().max():.3e}"
