"""Kept keys: csrc/kernels/topl/rows.h; on CUDA they take none."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch.attention import KEY_RANGE, take_bounds
from longspan.ops.scratch.pq import codeword_lanes, table_bytes
from longspan.ops.scratch.workspace import Workspace, ceil_div, round_up, statistics

TABLE_ROWS, CODE_GROUP = 64, 64


def _rows(
    ws: Workspace,
    q: Tensor | None,
    query_codes: Tensor | None,
    key_codes: Tensor,
    codebook: Tensor | None,
    layouts: tuple[Tensor | None, Tensor | None],
    subspaces: int,
    codewords: int,
) -> None:
    if ws.on_cuda:
        return
    queries = q if q is not None else query_codes
    assert queries is not None
    B, K, S, _ = key_codes.shape
    groups = ceil_div(S, CODE_GROUP)
    key_layouts = take_bounds(ws, queries.shape[2], S, *layouts)
    if q is not None and codebook is not None:
        e, (_, subspaces, codewords, _) = statistics(q), codebook.shape
        ws.take(max(1, codeword_lanes(codebook, ws.machine.lanes(e)) * e))
    ws.take(max(1, B * K * groups * subspaces * CODE_GROUP))
    ws.take(max(1, key_layouts * groups * KEY_RANGE))
    tables = round_up(TABLE_ROWS * table_bytes(subspaces, codewords), 64)
    ws.take(max(1, (tables + round_up(groups * CODE_GROUP * 2, 64) + round_up(groups * 2, 64)) * ws.threads))


@scratch("topl_threshold")
def threshold(
    ws: Workspace,
    q: Tensor | None,
    query_codes: Tensor | None,
    key_codes: Tensor,
    codebook: Tensor | None,
    q_layout: Tensor | None,
    k_layout: Tensor | None,
    budget: int,
    subspaces: int,
    codewords: int,
    *rest: Any,
) -> None:
    """Bounds, codes of all keys by subspace; of every worker tables of a tile of rows and scores of one."""
    _rows(ws, q, query_codes, key_codes, codebook, (q_layout, k_layout), subspaces, codewords)


@scratch("topl_indices")
def indices(
    ws: Workspace,
    q: Tensor | None,
    query_codes: Tensor | None,
    key_codes: Tensor,
    codebook: Tensor | None,
    threshold: Tensor,
    cut: Tensor,
    q_layout: Tensor | None,
    k_layout: Tensor | None,
    slots: int,
    subspaces: int,
    codewords: int,
    *rest: Any,
) -> None:
    """As topl_threshold."""
    _rows(ws, q, query_codes, key_codes, codebook, (q_layout, k_layout), subspaces, codewords)
