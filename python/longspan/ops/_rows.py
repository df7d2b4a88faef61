"""Tensors of any shape as the rows that kernels take."""

from __future__ import annotations

import math

from torch import Tensor


def last_contiguous(x: Tensor) -> Tensor:
    """x with its last dimension contiguous, copied only where it is not."""
    return x if x.shape[-1] <= 1 or x.stride(-1) == 1 else x.contiguous()


def as_rows(x: Tensor) -> Tensor:
    """[..., C] as [T, C] with contiguous rows, copied only where the strides ask for it."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return last_contiguous(rows)
