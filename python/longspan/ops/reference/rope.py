"""Rotary position embedding from its definition; run it in float64 and it is the oracle."""

from __future__ import annotations

import torch
from torch import Tensor


def rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, interleaved: bool = False) -> Tensor:
    """See `longspan.ops.rope`: x [B,H,T,D], tables [P,N], positions [T] or [1 or B, T]. Differentiable by torch."""
    pairs = cos.shape[1]
    rows = positions[None] if positions.dim() == 1 else positions
    c, s = (table[rows].to(x.dtype)[:, None] for table in (cos, sin))  # [1 or B, 1, T, N]
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * c - b * s, a * s + b * c), -1).flatten(-2)
    else:
        a, b = turned[..., :pairs], turned[..., pairs:]
        out = torch.cat((a * c - b * s, a * s + b * c), -1)
    return torch.cat((out, rest), -1)
