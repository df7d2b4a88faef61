"""Linear maps with low-rank adapters from their definition; run it in float64 and it is the oracle."""

from __future__ import annotations

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF


def dropout_mask(seed: int, rows: int, columns: int, p: float) -> Tensor:
    """The mask D [rows, columns], float64: 0 or 1 / (1 - p), a pure function of (seed, row, column).

    Element i = row * columns + column has word i % 4 of Philox4x32-10 (Salmon et al. 2011) with counter i // 4 and key
    seed; it is dropped when the word is below p * 2^32.
    """
    index = torch.arange(rows * columns, dtype=torch.int64)
    words = philox(index // 4, seed)
    word = torch.stack(words, 1).gather(1, (index % 4)[:, None])[:, 0]
    return ((word >= int(p * 2**32)).double() / (1 - p)).reshape(rows, columns)


def philox(counter: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 bits, each [n] in int64, from counters [n] (the low half of 128 bits) and a 64-bit key."""
    x0, x1 = counter & _WORD, counter >> 32
    x2, x3 = torch.zeros_like(counter), torch.zeros_like(counter)
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        (high0, low0), (high1, low1) = _multiply(0xD2511F53, x0), _multiply(0xCD9E8D57, x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & _WORD, (k1 + 0xBB67AE85) & _WORD
    return x0, x1, x2, x3


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of a product of 32-bit words, in halves of 16 bits so that int64 holds every step."""
    low, high = constant & 0xFFFF, constant >> 16
    cross = high * x + ((low * x) >> 16)
    return cross >> 16, ((cross & 0xFFFF) << 16) | ((low * x) & 0xFFFF)


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
