"""Codebooks: csrc/kernels/pq/{encode,loss,stats,tables}_cpu.cpp, score.h, loss.cu and stats.cu."""

from __future__ import annotations

from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch.workspace import Workspace, ceil_div, round_up, statistics

CHUNK = 512


def table_bytes(subspaces: int, codewords: int) -> int:
    """Bytes of one query's table."""
    return subspaces << (4 if codewords <= 16 else 8)


def codeword_lanes(codebook: Tensor, lanes: int) -> int:
    """Numbers of a codebook [G,M,E,d] whose codewords fill whole vectors."""
    G, M, E, d = codebook.shape
    return G * M * d * round_up(E, lanes)


def _tasks(z: Tensor) -> int:
    B, H, N, _ = z.shape
    return B * H * ceil_div(N, CHUNK)


@scratch("pq_encode")
def encode(ws: Workspace, z: Tensor, codebook: Tensor, power: int) -> None:
    """Of every worker: a vector of rows, transposed."""
    if ws.on_cuda:
        return
    _, M, _, d = codebook.shape
    e = statistics(z)
    ws.take(M * d * ws.machine.lanes(e) * e * ws.threads)


@scratch("pq_loss")
def loss(ws: Workspace, z: Tensor, codebook: Tensor, codes: Tensor, power: int, eps: float, need_dz: bool) -> None:
    """A codebook's gradient and a loss per chunk of rows; of every worker one vector's parts."""
    (_, M, E, d), e, tasks = codebook.shape, statistics(z), _tasks(z)
    if ws.on_cuda:
        ws.take(max(1, tasks * M) * 4)
        ws.take(max(1, tasks * M * E * d) * 4)
        return
    ws.take((4 * round_up(d, 16) + 3 * round_up(E, 16)) * e * ws.threads)
    ws.take(max(1, tasks) * M * E * d * e)
    ws.take(max(1, tasks) * e)


@scratch("pq_stats")
def stats(ws: Workspace, z: Tensor, codes: Tensor, groups: int, subspaces: int, codewords: int, width: int) -> None:
    """Sums and counts per chunk of rows."""
    tasks, counts = max(1, _tasks(z)), subspaces * codewords
    ws.take(tasks * counts * width * statistics(z))
    ws.take(tasks * counts * 4)


@scratch("adc_table")
def tables(ws: Workspace, q: Tensor, codebook: Tensor) -> None:
    """The codebook, codewords along the lanes."""
    if not ws.on_cuda:
        e = statistics(q)
        ws.take(codeword_lanes(codebook, ws.machine.lanes(e)) * e)
