"""Row norms from their definition; run it in float64 and it is the oracle."""

from __future__ import annotations

from torch import Tensor


def norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    centered: bool = False,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """(y, x + residual); see `longspan.ops.rms_norm` and `layer_norm`. Differentiable by torch."""
    total = x if residual is None else x + residual
    rows = total - total.mean(-1, keepdim=True) if centered else total
    y = rows * (rows.square().mean(-1, keepdim=True) + eps).rsqrt()
    if weight is not None:
        y = y * (weight + weight_offset)
    return (y if bias is None else y + bias), total
