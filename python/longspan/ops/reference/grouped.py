"""Grouped products row by row's set, any float dtype."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from longspan.ops.grouped import BlockSets


def _spread(values: Tensor, sets: BlockSets) -> Tensor:
    """Slots' columns [n, active Nb] at their blocks' places [n, G Nb], 0 elsewhere."""
    width = values.shape[1] // sets.active
    rows = []
    for members, (first, last) in zip(sets.members(), _borders(sets), strict=True):
        part = values[first:last].unflatten(1, (sets.active, width))
        place = torch.zeros(sets.active, sets.blocks, dtype=values.dtype)
        place[torch.arange(sets.active), torch.tensor(members)] = 1
        rows.append(torch.einsum("tsj,sg->tgj", part, place).flatten(1))
    return torch.cat(rows)


def _borders(sets: BlockSets) -> list[tuple[int, int]]:
    offsets = sets.offsets.tolist()
    return list(itertools.pairwise(offsets))


def _taken(values: Tensor, sets: BlockSets) -> Tensor:
    """Blocks' columns [n, G Nb] at the rows' slots [n, active Nb]."""
    width = values.shape[1] // sets.blocks
    rows = []
    for members, (first, last) in zip(sets.members(), _borders(sets), strict=True):
        rows.append(values[first:last].unflatten(1, (sets.blocks, width))[:, list(members)].flatten(1))
    return torch.cat(rows)


def grouped_expand(
    x: Tensor,
    weight: Tensor,
    sets: BlockSets,
    bias: Tensor | None = None,
    *,
    by_rows: bool = True,
    tail: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The dense product, of which each row takes its blocks."""
    y = x @ (weight.mT if by_rows else weight)
    y = y if bias is None else y + bias
    if tail is not None:
        y = y + (tail[0] @ (tail[1].mT if by_rows else tail[1])).to(y.dtype)
    return _taken(y, sets)


def grouped_reduce(
    x: Tensor,
    weight: Tensor,
    sets: BlockSets,
    bias: Tensor | None = None,
    *,
    by_rows: bool = False,
    tail: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The dense product of rows that are 0 in other blocks."""
    y = _spread(x, sets) @ (weight if by_rows else weight.mT)
    y = y if bias is None else y + bias
    return y if tail is None else y + (tail[0] @ (tail[1] if by_rows else tail[1].mT)).to(y.dtype)


def grouped_weight(a: Tensor, b: Tensor, sets: BlockSets, *, by_rows: bool = True) -> Tensor:
    """The dense weight's gradient of rows that are 0 in other blocks."""
    dweight = _spread(a, sets).mT @ b
    return dweight if by_rows else dweight.mT
