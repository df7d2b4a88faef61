"""Order statistics of magnitudes by sorting them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def kth_magnitude(tensors: Sequence[Tensor], wanted: int, *, exact: bool = True) -> tuple[float, Tensor]:
    """One group: the wanted-th largest |x|, and which elements are kept, bool [n] over the list one after the other."""
    flat = torch.cat([x.flatten().double() for x in tensors]).abs()
    order = torch.sort(flat, descending=True, stable=True).indices
    threshold = flat[order[wanted - 1]]
    kept = torch.zeros(len(flat), dtype=torch.bool)
    kept[order[:wanted] if exact else (flat >= threshold).nonzero().flatten()] = True
    return float(threshold), kept & (flat > 0)


def magnitude_histogram(tensors: Sequence[Tensor]) -> Tensor:
    """One group: counts int64 [32768] by the upper 15 bits of the magnitude."""
    counts = torch.zeros(1 << 15, dtype=torch.int64)
    for x in tensors:
        bits = x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16).flatten().int()
        keys = (bits >> 16 if x.dtype == torch.float32 else bits) & 0x7FFF
        counts += torch.bincount(keys, minlength=1 << 15)
    return counts
