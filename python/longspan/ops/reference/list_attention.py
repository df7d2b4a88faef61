"""Attention over lists in three steps, any float dtype: sampled products, softmax of lists, sums of gathered rows."""

from __future__ import annotations

import torch
from torch import Tensor


def _gathered(x: Tensor, indices: Tensor) -> Tensor:
    """Rows of x [B,H,S,D] by lists [B,H,T,L]: [B,H,T,L,D]; those of -1 are some row."""
    B, H, T, L = indices.shape
    if x.shape[2] == 0:
        return x.new_zeros(B, H, T, L, x.shape[3])
    index = indices.long().clamp(min=0).reshape(B, H, T * L, 1).expand(-1, -1, -1, x.shape[3])
    return x.gather(2, index).reshape(B, H, T, L, x.shape[3])


def sddmm(q: Tensor, k: Tensor, indices: Tensor) -> Tensor:
    """Products of each query with its listed keys: q [B,H,T,D], k [B,H,S,D], lists [B,H,T,L] -> [B,H,T,L]."""
    return (q[:, :, :, None] * _gathered(k, indices)).sum(-1)


def masked_softmax(scores: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over the slots that are filled, and the log of its sum; an empty list has weights 0 and -inf."""
    filled = indices >= 0
    empty = ~filled.any(-1, keepdim=True)
    masked = scores.masked_fill(~filled & ~empty, float("-inf"))
    lse = (
        torch.logsumexp(masked, -1).masked_fill(empty[..., 0], float("-inf"))
        if scores.shape[-1]
        else (scores.new_full(scores.shape[:-1], float("-inf")))
    )
    weights = torch.softmax(masked, -1).masked_fill(~filled, 0)
    return weights, lse


def spmm(weights: Tensor, v: Tensor, indices: Tensor) -> Tensor:
    """Weighted sums of the listed rows: weights and lists [B,H,T,L], v [B,H,S,D] -> [B,H,T,D]."""
    return (weights[..., None] * _gathered(v, indices)).sum(3)


def list_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, *, scale: float | None = None, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """out [B,H,T,D] and lse [B,H,T], differentiable by autograd."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = sddmm(q, k, indices) * (q.shape[3] ** -0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    weights, lse = masked_softmax(scores, indices)
    return spmm(weights, v, indices), lse


def list_transpose(indices: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """starts [B,H,keys+1] and rows [B,H,T L] list by list."""
    B, H, T, L = indices.shape
    starts, rows = torch.zeros(B, H, keys + 1, dtype=torch.int32), torch.full((B, H, T * L), -1, dtype=torch.int32)
    for b in range(B):
        for h in range(H):
            pairs = sorted((int(j), t) for t in range(T) for j in indices[b, h, t] if j >= 0)
            rows[b, h, : len(pairs)] = torch.tensor([t for _, t in pairs], dtype=torch.int32)
            counts = torch.bincount(torch.tensor([j for j, _ in pairs], dtype=torch.long), minlength=keys)
            starts[b, h, 1:] = counts.cumsum(0)
    return starts, rows
