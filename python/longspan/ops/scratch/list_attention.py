"""Attention over lists of keys: csrc/kernels/list_attention/{rows.h,fwd_cpu.cpp,bwd_cpu.cpp} and list_attention.cu."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch.workspace import Workspace, round_up, statistics


def _wide(ws: Workspace, x: Tensor) -> int:
    """WideRows: a copy where rows do not fill whole vectors of the type of the sums; returns their length."""
    B, H, N, D = x.shape
    e = statistics(x)
    padded = round_up(D, ws.machine.lanes(e))
    if x.element_size() != e or padded != D:
        ws.take(max(1, B * H * N * padded) * e)
    return padded


@scratch("list_attention_fwd")
def forward(ws: Workspace, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, *rest: Any) -> None:
    """Copies of k and v where they need them; of every worker a query, a sum and the scores of a list."""
    if ws.on_cuda:
        return
    e = statistics(q)
    padded = _wide(ws, k)
    _wide(ws, v)
    ws.take((2 * padded + round_up(indices.shape[-1], ws.machine.lanes(e))) * e * ws.threads)


@scratch("list_attention_bwd")
def backward(
    ws: Workspace,
    dout: Tensor,
    dlse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    indices: Tensor,
    *rest: Any,
) -> None:
    """Copies of q, k, v and dout where they need them, a number a row; of every worker sums and scores."""
    (B, H, Q, _), e = q.shape, statistics(q)
    if ws.on_cuda:
        ws.take(max(1, B * H * Q) * 4)
        return
    padded = _wide(ws, q)
    for x in (k, v, dout):
        _wide(ws, x)
    lanes = ws.machine.lanes(e)
    ws.take(max(1, B * H * Q) * e)
    for own, longest in ((1, indices.shape[-1]), (4, Q)):
        ws.take(max(1, (own * padded + 3 * round_up(longest, lanes)) * ws.threads) * e)
