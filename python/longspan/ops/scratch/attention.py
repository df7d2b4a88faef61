"""Attention: csrc/kernels/attention/{bounds,fwd_cpu,bwd_cpu}.cpp and attention_cuda.cu."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch.workspace import Workspace, ceil_div, round_up, statistics

QUERY_TILE, KEY_TILE, KEY_STEP = 64, 256, 32
SCORE_STRIDE = KEY_TILE + 16
ROW_RANGE, KEY_RANGE, COLUMNS, BLOCK = 36, 20, 12, 24  # bytes of the structs
CUDA_RUN = 16


def _bounds(ws: Workspace, q: Tensor, k: Tensor, q_layout: Tensor | None, k_layout: Tensor | None, kind: str) -> None:
    layouts = [1, 1]
    for i, (layout, x) in enumerate(((q_layout, q), (k_layout, k))):
        if layout is not None:
            layouts[i] = layout.shape[1]
        elif not ws.on_cuda:
            ws.take(x.shape[2] * 4)
            ws.take(x.shape[2] * 4)
    classes = 2 if kind == "s2" else 1
    query_tile, key_tile = (CUDA_RUN, CUDA_RUN) if ws.on_cuda else (QUERY_TILE, KEY_TILE)
    ws.take(layouts[0] * classes * ceil_div(q.shape[2], query_tile) * ROW_RANGE)
    ws.take(layouts[1] * ceil_div(k.shape[2], key_tile) * KEY_RANGE)
    if not ws.on_cuda:
        ws.take(layouts[1] * ceil_div(k.shape[2], KEY_STEP) * KEY_RANGE)


def _arena(*parts: int) -> int:
    return sum(round_up(part, 64) for part in parts)


@scratch("attention_fwd")
def forward(
    ws: Workspace,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_layout: Tensor | None,
    k_layout: Tensor | None,
    tiles: Tensor | None,
    pattern: str,
    *rest: Any,
) -> None:
    """Bounds, and packed tiles of every worker."""
    _bounds(ws, q, k, q_layout, k_layout, pattern)
    if ws.on_cuda:
        return
    (_, H, _, D), e = q.shape, statistics(q)
    group = H // k.shape[1]
    own = ceil_div(4, group) * group
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
    q_layout: Tensor | None,
    k_layout: Tensor | None,
    tiles: Tensor | None,
    pattern: str,
    *rest: Any,
) -> None:
    """Bounds, a number a row, packed tiles of every worker; for bfloat16 float sums of all three gradients."""
    _bounds(ws, q, k, q_layout, k_layout, pattern)
    (B, H, T, D), e = q.shape, statistics(q)
    ws.take(B * H * T * e)
    if ws.on_cuda:
        ws.take(B * H * T * e)
        return
    if q.element_size() < e:
        for x in (q, k, v):
            ws.take(x.numel() * e)
    softcap = rest[-1] > 0
    padded = round_up(D, ws.machine.lanes(e))
    own = KEY_TILE // QUERY_TILE * (H // k.shape[1])
    scores = QUERY_TILE * SCORE_STRIDE * e
    used = _arena(
        *[KEY_TILE * D * e] * 2,
        *[KEY_TILE * padded * e] * 3,
        *[QUERY_TILE * D * e] * 2,
        *[QUERY_TILE * padded * e] * 3,
        *[scores] * (3 if softcap else 2),
        own * COLUMNS,
    )
    ws.take(used * ws.threads)
    ws.take(B * max(ceil_div(T, KEY_TILE), ceil_div(k.shape[2], KEY_TILE)) * BLOCK)
