"""Products of blocks: csrc/kernels/grouped/grouped_cpu.cpp and grouped.cu.

The CPU's scratch depends on how many rows each set has; without data in the offsets, all rows count as of one set.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from longspan.ops._define import scratch
from longspan.ops.grouped import BlockSets
from longspan.ops.scratch.gemm import gemm
from longspan.ops.scratch.workspace import Steps, Workspace, narrow, round_up, statistics

PANEL, RANK_STEP = 2048, 16


def _sets(offsets: Tensor, rows: int, blocks: int, active: int) -> list[tuple[tuple[int, ...], int]]:
    """The blocks of each set and its rows."""
    if isinstance(offsets, FakeTensor) or offsets.device.type == "meta":
        return [(tuple(range(active)), rows)]
    return list(zip(BlockSets(offsets, blocks, active).members(), torch.diff(offsets).tolist(), strict=True))


def _runs(offsets: Tensor, rows: int, blocks: int, active: int) -> Iterator[tuple[int, int]]:
    """Slots, and the rows of neighbouring sets with one block in them."""
    for slot in range(active):
        of_slot = [(members[slot], count) for members, count in _sets(offsets, rows, blocks, active)]
        for _, run in itertools.groupby(of_slot, key=itemgetter(0)):
            count = sum(count for _, count in run)
            if count > 0:
                yield slot, count


def _tail(ws: Workspace, x: Tensor, p: Tensor | None, columns: int, by_rows: bool) -> int:
    """The rank; on CUDA 16-bit factors are packed."""
    if p is None:
        return 0
    if ws.on_cuda and x.element_size() == 2:
        rank = round_up(p.shape[1], RANK_STEP)
        ws.take(max(1, p.shape[0] * rank) * 2)
        ws.take(max(1, (columns if by_rows else round_up(columns, 8)) * rank) * 2)
    return p.shape[1]


@scratch("grouped_expand")
def expand(
    ws: Workspace,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: Tensor | None,
    q: Tensor | None,
    offsets: Tensor,
    blocks: int,
    active: int,
    by_rows: bool,
) -> None:
    """That of one product."""
    units, C = weight.shape if by_rows else weight.shape[::-1]
    rank = _tail(ws, x, p, units, by_rows)
    if ws.on_cuda:
        return
    steps = Steps(ws)
    for _, rows in _runs(offsets, x.shape[0], blocks, active):
        product: dict[str, Any] = {"element": statistics(x), "in_place": not narrow(x), "rounds": narrow(x)}
        gemm(steps.next(), rows, units // blocks, C, rank=rank, **product)


@scratch("grouped_reduce")
def reduce(
    ws: Workspace,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    p: Tensor | None,
    q: Tensor | None,
    offsets: Tensor,
    blocks: int,
    active: int,
    by_rows: bool,
) -> None:
    """That of one product; sums of a panel of 16-bit rows that several slots add to."""
    units, columns = weight.shape if by_rows else weight.shape[::-1]
    rank = _tail(ws, x, p, columns, not by_rows)
    if ws.on_cuda:
        return
    product: dict[str, Any] = {"element": statistics(x), "in_place": not narrow(x)}
    steps = Steps(ws)
    if not narrow(x) or active == 1:
        for slot, rows in _runs(offsets, x.shape[0], blocks, active):
            last = rank if slot + 1 == active else 0
            gemm(steps.next(), rows, columns, units // blocks, rank=last, rounds=narrow(x), **product)
        return
    ws.take(max(1, min(PANEL, x.shape[0]) * columns) * 4)
    for _, count in _sets(offsets, x.shape[0], blocks, active):
        for first in range(0, count, PANEL):
            for slot in range(active):
                last = rank if slot + 1 == active else 0
                sizes = (min(PANEL, count - first), columns, units // blocks)
                gemm(steps.next(), *sizes, rank=last, rounds=False, **product)


@scratch("grouped_weight")
def weights(
    ws: Workspace, a: Tensor, b: Tensor, offsets: Tensor, blocks: int, active: int, by_rows: bool, wide: bool
) -> None:
    """That of one product; sums of all blocks where the result is in 16 bits."""
    width, C = a.shape[1] // active, b.shape[1]
    if ws.on_cuda:
        return
    if narrow(a) and not wide:
        ws.take(max(1, width * blocks * C) * statistics(a))
    steps = Steps(ws)
    for _, rows in _runs(offsets, a.shape[0], blocks, active):
        sizes = (width, C) if by_rows else (C, width)
        gemm(steps.next(), *sizes, rows, element=statistics(a), in_place=False, rounds=False)
