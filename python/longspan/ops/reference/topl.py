"""Scores of codes as whole tensors, and the kept keys by sorting them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from longspan.ops.pq import code_bits, unpack_codes
from longspan.ops.topl import KeySelection


def adc_table(q: Tensor, codebook: Tensor) -> Tensor:
    """uint8 [B,H,T,M,16 or 256] by its definition, rounded one by one in the codebook's dtype."""
    groups, subspaces, codewords, width = codebook.shape
    padded = functional.pad(q.to(codebook.dtype), (0, subspaces * width - q.shape[3])).unflatten(3, (subspaces, width))
    books = codebook.repeat_interleave(q.shape[1] // groups, 0)
    products = padded.new_zeros((*padded.shape[:4], codewords))
    for j in range(width):
        products = products + padded[..., None, j] * books[None, :, None, :, :, j]
    low, high = products.amin(-1, keepdim=True), products.amax(-1, keepdim=True)
    spread = (high - low).amax(-2, keepdim=True)
    # A tensor by a tensor: torch makes 255 / spread of a reciprocal, which rounds twice.
    factor = torch.where(spread > 0, torch.full_like(spread, 255) / spread, 0.0)
    table = ((products - low) * factor + 0.5).clamp(0, 255).floor().to(torch.uint8)
    return functional.pad(table, (0, 2 ** code_bits(codewords) - codewords))


def scores(selection: KeySelection, q: Tensor | None = None) -> Tensor:
    """Integer scores [B,H,T,S] of all pairs."""
    codes = unpack_codes(selection.key_codes, selection.subspaces, selection.codewords)
    if selection.query_codes is not None:
        queries = unpack_codes(selection.query_codes, selection.subspaces, selection.codewords)
        codes = codes.repeat_interleave(queries.shape[1] // codes.shape[1], 1)
        return (queries[..., :, None, :] == codes[..., None, :, :]).sum(-1)
    assert q is not None
    assert selection.codebook is not None
    table = adc_table(q, selection.codebook).long()
    codes = codes.repeat_interleave(q.shape[1] // codes.shape[1], 1)
    total = torch.zeros((*q.shape[:3], codes.shape[2]), dtype=torch.long)
    for m in range(selection.subspaces):
        index = codes[:, :, None, :, m].expand(-1, -1, q.shape[2], -1)
        total += table[..., m, :].gather(3, index)
    return total


def selected(selection: KeySelection, q: Tensor | None = None) -> Tensor:
    """bool [B,H,T,S]: pairs that threshold and cut keep, reachable or not."""
    found, threshold = scores(selection, q), selection.threshold.long()[..., None]
    number = torch.arange(found.shape[3])
    return (found > threshold) | ((found == threshold) & (number >= selection.cut.long()[..., None]))


def topl_threshold(found: Tensor, reachable: Tensor, near: Tensor, budget: int) -> Tensor:
    """bool [B,H,T,S]: the kept keys by sorting scores [B,H,T,S], the newest of equal ones first; masks as them."""
    near = near & reachable
    wanted = reachable.sum(-1).clamp(max=budget) - near.sum(-1)
    keys = found.shape[3]
    rank = torch.where(reachable & ~near, found * keys + torch.arange(keys), -1)
    order = rank.argsort(-1, descending=True)
    place = torch.empty_like(order).scatter_(-1, order, torch.arange(keys).expand_as(order))
    return near | ((place < wanted[..., None]) & reachable & ~near)


def topl_indices(kept: Tensor, slots: int) -> Tensor:
    """int32 [B,H,T,slots] from bool [B,H,T,S]: the first numbers, increasing, -1 behind the last."""
    keys = kept.shape[3]
    numbers = torch.where(kept, torch.arange(keys), keys).sort(-1).values
    numbers = functional.pad(numbers, (0, max(0, slots - keys)), value=keys)[..., :slots]
    return torch.where(numbers < keys, numbers, -1).int()
