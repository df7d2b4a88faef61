"""Attention: csrc/kernels/attention/{bounds,[listed_]fwd_cpu,[listed_]bwd_cpu}.cpp and attention_cuda.cu."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch.pq import codeword_lanes, table_bytes
from longspan.ops.scratch.workspace import Workspace, ceil_div, round_up, statistics

QUERY_TILE, KEY_TILE, KEY_STEP = 64, 256, 32
SCORE_STRIDE = KEY_TILE + 16
ROW_RANGE, KEY_RANGE, COLUMNS, BLOCK = 36, 20, 12, 24  # bytes of the structs
CUDA_RUN = 16
LIST_RANGE, LIST_TASKS = 2048, 16


@dataclass
class _Spec:
    """The arguments behind the arrays."""

    q_layout: Tensor | None
    k_layout: Tensor | None
    tiles: Tensor | None
    kind: str
    causal: bool
    group_size: int
    window: int
    sinks: int
    model_window: int
    tile_size: int
    scale: float
    softcap: float
    key_codes: Tensor | None = None
    query_codes: Tensor | None = None
    codebook: Tensor | None = None
    threshold: Tensor | None = None
    cut: Tensor | None = None
    subspaces: int = 0
    codewords: int = 0

    def heads_together(self, H: int, K: int) -> int:
        """Heads of a key head that share a list of tiles."""
        assert self.tiles is not None
        return 1 if self.tiles.shape[-3] > K else H // K

    def selection(self, tiles: int) -> list[int]:
        """Tables of query tiles and codes of a key tile."""
        if self.kind != "selected":
            return []
        return [tiles * QUERY_TILE * table_bytes(self.subspaces, self.codewords), self.subspaces * KEY_TILE]

    def lanes(self, ws: Workspace, e: int) -> None:
        """The codebook, codewords along the lanes."""
        if self.kind == "selected" and self.codebook is not None:
            ws.take(codeword_lanes(self.codebook, ws.machine.lanes(e)) * e)


def take_bounds(
    ws: Workspace, queries: int, keys: int, q_layout: Tensor | None, k_layout: Tensor | None, classes: int = 1
) -> int:
    """What rows of `queries` and `keys` tokens may see, by tile; returns the number of layouts of the keys."""
    layouts = [1, 1]
    for i, (layout, length) in enumerate(((q_layout, queries), (k_layout, keys))):
        if layout is not None:
            layouts[i] = layout.shape[1]
        elif not ws.on_cuda:
            ws.take(length * 4)
            ws.take(length * 4)
    query_tile, key_tile = (CUDA_RUN, CUDA_RUN) if ws.on_cuda else (QUERY_TILE, KEY_TILE)
    ws.take(layouts[0] * classes * ceil_div(queries, query_tile) * ROW_RANGE)
    ws.take(layouts[1] * ceil_div(keys, key_tile) * KEY_RANGE)
    if not ws.on_cuda:
        ws.take(layouts[1] * ceil_div(keys, KEY_STEP) * KEY_RANGE)
    return layouts[1]


def _bounds(ws: Workspace, q: Tensor, k: Tensor, spec: _Spec) -> None:
    classes = 2 if spec.kind == "s2" else 1
    take_bounds(ws, q.shape[2], k.shape[2], spec.q_layout, spec.k_layout, classes)


def _arena(*parts: int) -> int:
    return sum(round_up(part, 64) for part in parts)


@scratch("attention_fwd")
def forward(ws: Workspace, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> None:
    """Bounds, and packed tiles of every worker."""
    spec = _Spec(*rest)
    _bounds(ws, q, k, spec)
    if ws.on_cuda:
        return
    (_, H, _, D), e = q.shape, statistics(q)
    group = H // k.shape[1]
    own = spec.heads_together(H, k.shape[1]) if spec.kind == "tiles" else ceil_div(4, group) * group
    spec.lanes(ws, e)
    padded = round_up(D, ws.machine.lanes(e))
    used = _arena(
        own * QUERY_TILE * D * e,
        KEY_TILE * D * e,
        KEY_TILE * padded * e,
        QUERY_TILE * SCORE_STRIDE * e,
        own * QUERY_TILE * padded * e,
        own * QUERY_TILE * e,
        own * QUERY_TILE * e,
        own * COLUMNS,
        *spec.selection(own),
    )
    ws.take(used * ws.threads)


@scratch("attention_bwd")
def backward(
    ws: Workspace,
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *rest: Any,
) -> None:
    """Bounds, a number a row, packed tiles of every worker; for bfloat16 float sums of all three gradients; for listed
    tiles sums of the keys' gradients a task; for a selection tables of all rows that are no larger than q."""
    spec = _Spec(*rest)
    _bounds(ws, q, k, spec)
    (B, H, T, D), e = q.shape, statistics(q)
    ws.take(B * H * T * e)
    if ws.on_cuda:
        ws.take(B * H * T * e)
        return
    if q.element_size() < e:
        for x in (q, k, v):
            ws.take(x.numel() * e)
    if spec.kind == "tiles":
        return _listed_backward(ws, q, k, spec)
    K = k.shape[1]
    padded = round_up(D, ws.machine.lanes(e))
    scores = QUERY_TILE * SCORE_STRIDE * e
    spec.lanes(ws, e)
    row = table_bytes(spec.subspaces, spec.codewords) if spec.kind == "selected" else 0
    if 0 < row <= D * e:
        ws.take(B * H * T * row)
    used = _arena(
        *[KEY_TILE * D * e] * 2,
        *[KEY_TILE * padded * e] * 3,
        *[QUERY_TILE * D * e] * 2,
        *[QUERY_TILE * padded * e] * 3,
        *[scores] * (3 if spec.softcap > 0 else 2),
        KEY_TILE // QUERY_TILE * (H // K) * COLUMNS,
        *spec.selection(1),
    )
    ws.take(used * ws.threads)
    ws.take(B * max(ceil_div(T, KEY_TILE), ceil_div(k.shape[2], KEY_TILE)) * BLOCK)


def _listed_backward(ws: Workspace, q: Tensor, k: Tensor, spec: _Spec) -> None:
    (B, H, _, D), e, K = q.shape, statistics(q), k.shape[1]
    padded, heads = round_up(D, ws.machine.lanes(e)), spec.heads_together(H, K)
    for _ in range(2):
        ws.take(max(1, B * K * ceil_div(LIST_TASKS, B * K) * LIST_RANGE * padded) * e)
    used = _arena(
        *[heads * QUERY_TILE * D * e] * 2,
        *[heads * QUERY_TILE * padded * e] * 2,
        *[KEY_TILE * D * e] * 2,
        KEY_TILE * padded * e,
        *[QUERY_TILE * SCORE_STRIDE * e] * (3 if spec.softcap > 0 else 2),
        QUERY_TILE * padded * e,
    )
    ws.take(used * ws.threads)
