"""Linear maps with low-rank adapters from their definition; run it in float64 and it is the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.reference.philox import WORD, philox


def dropout_mask(seed: int, rows: int, columns: int, p: float) -> Tensor:
    """The mask D [rows, columns], float64: 0 or 1 / (1 - p), a pure function of (seed, row, column).

    Element i = row * columns + column has word i % 4 of Philox4x32-10 (Salmon et al. 2011) with counter i // 4 and key
    seed; it is dropped when the word is below p * 2^32.
    """
    index = torch.arange(rows * columns, dtype=torch.int64)
    counter, zeros = index // 4, torch.zeros_like(index)
    words = philox((counter & WORD, counter >> 32, zeros, zeros), seed)
    word = torch.stack(words, 1).gather(1, (index % 4)[:, None])[:, 0]
    return ((word >= int(p * 2**32)).double() / (1 - p)).reshape(rows, columns)


def lora_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lora_a: Tensor | None = None,
    lora_b: Tensor | None = None,
    scaling: float = 1.0,
    *,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """x W^T + bias + scaling ((x . mask) A^T) B^T + residual; see `longspan.ops.lora_linear`."""
    y = x @ weight.T
    if bias is not None:
        y = y + bias
    if lora_a is not None and lora_b is not None:
        rows = x if mask is None else x * mask.to(x.dtype)
        adapted = (rows.to(lora_a.dtype) @ lora_a.T) @ lora_b.T
        y = y + scaling * adapted
    y = y.to(x.dtype)
    return y if residual is None else y + residual
