"""Magnitudes: csrc/kernels/magnitude/magnitude_cpu.cpp and magnitude.cu."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch.workspace import Workspace, ceil_div

CHUNK, CUDA_CHUNK = 1 << 20, 61440  # elements that are counted at once
SMALL = 1 << 22  # elements of a group that one worker does alone
UPPER_BINS, LOWER_BINS = 1 << 15, 1 << 16
STATE, TIES, SUMS = 24, 32, 32  # bytes of what is noted of a group, of a chunk of equal magnitudes, of its sums


def _chunks(tensors: Sequence[Tensor], chunk: int) -> int:
    return sum(ceil_div(x.numel(), chunk) for x in tensors)


@scratch("magnitude_histogram")
def histogram(ws: Workspace, tensors: Sequence[Tensor], groups: Sequence[int], count: int, bins: Tensor | None) -> None:
    """Of every worker two histograms, and a sum of squares a chunk; on CUDA only those sums."""
    if ws.on_cuda:
        ws.take(max(1, _chunks(tensors, CUDA_CHUNK)) * 8)
        return
    ws.take(ws.threads * 2 * UPPER_BINS * 4)
    ws.take(max(1, _chunks(tensors, CHUNK)) * 8)


@scratch("squared_norms")
def squares(ws: Workspace, tensors: Sequence[Tensor], groups: Sequence[int], count: int) -> None:
    """A sum a chunk."""
    ws.take(max(1, _chunks(tensors, CUDA_CHUNK if ws.on_cuda else CHUNK)) * 8)


@scratch("kth_magnitude")
def kth(
    ws: Workspace, tensors: Sequence[Tensor], groups: Sequence[int], wanted: Tensor, exact: bool, norms: bool
) -> None:
    """Of every worker two histograms; for groups that all workers count together one more, and sums and a number a
    chunk. On CUDA a histogram a group.
    """
    if ws.on_cuda:
        count, chunks = wanted.shape[0], _chunks(tensors, CUDA_CHUNK)
        bins = LOWER_BINS if any(x.dtype == torch.float32 for x in tensors) else UPPER_BINS
        for size in (count * bins * 8, chunks * 8, count * 4, count * STATE, chunks * TIES * int(exact)):
            ws.take(max(8, size))
        return
    ws.take(ws.threads * 2 * UPPER_BINS * 4)
    sizes = [0] * wanted.shape[0]
    for x, group in zip(tensors, groups, strict=True):
        sizes[group] += x.numel()
    if any(size > SMALL for size in sizes):
        ws.take(LOWER_BINS * 8)
        chunks = max(1, _chunks(tensors, CHUNK))
        ws.take(chunks * SUMS)
        ws.take(chunks * 8)
