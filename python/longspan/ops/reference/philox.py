"""Philox4x32-10 (Salmon et al. 2011) from its definition, on int64 tensors of 32-bit words."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

WORD = 0xFFFFFFFF


def philox(counter: Sequence[Tensor], key: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words, each [n] in int64, from the four words of counters, lowest first and each [n], and a 64-bit key."""
    x0, x1, x2, x3 = counter
    k0, k1 = key & WORD, (key >> 32) & WORD
    for _ in range(10):
        (high0, low0), (high1, low1) = _multiply(0xD2511F53, x0), _multiply(0xCD9E8D57, x2)
        x0, x1, x2, x3 = high1 ^ x1 ^ k0, low1, high0 ^ x3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return x0, x1, x2, x3


def _multiply(constant: int, x: Tensor) -> tuple[Tensor, Tensor]:
    """High and low words of a product of 32-bit words, in halves of 16 bits so that int64 holds every step."""
    low, high = constant & 0xFFFF, constant >> 16
    cross = high * x + ((low * x) >> 16)
    return cross >> 16, ((cross & 0xFFFF) << 16) | ((low * x) & 0xFFFF)
