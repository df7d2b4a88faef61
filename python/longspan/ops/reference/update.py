"""Optimiser steps with a mask, written out of place in the dtype of the weights: float64 is the oracle."""

from __future__ import annotations

from torch import Tensor


def masked_adamw(
    p: Tensor,
    g: Tensor,
    m: Tensor,
    v: Tensor,
    kept: Tensor,
    *,
    mode: str,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """kept: bool of p's shape -> new weights and moments."""
    one, two = betas
    g = g * kept if mode == "grad" else g
    first, second = one * m + (1 - one) * g, two * v + (1 - two) * g.square()
    decayed = p * (1 - lr * weight_decay)
    denominator = second.sqrt() / (1 - two**step) ** 0.5 + eps
    moved = decayed - lr / (1 - one**step) * first / denominator
    if mode == "grad":
        return moved, first, second
    if mode == "update":
        return moved.where(kept, decayed), first, second
    return moved.where(kept, p), first.where(kept, m), second.where(kept, v)


def masked_sgd(
    p: Tensor,
    g: Tensor,
    b: Tensor | None,
    kept: Tensor,
    *,
    mode: str,
    lr: float,
    momentum: float = 0.0,
    weight_decay: float = 0.0,
) -> tuple[Tensor, Tensor | None]:
    """kept: bool of p's shape -> new weights and momentum."""
    g = (g * kept if mode == "grad" else g) + weight_decay * p
    step = g if b is None else momentum * b + g
    moved = p - lr * step
    if mode == "grad":
        return moved, None if b is None else step
    kept_step = None if b is None else step if mode == "update" else step.where(kept, b)
    return moved.where(kept, p), kept_step
