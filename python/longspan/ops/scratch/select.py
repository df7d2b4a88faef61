"""Block scores: csrc/kernels/select/block_score_cpu.cpp; on CUDA they take none."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch.workspace import Workspace, statistics

ROWS, TILE, STRIDE = 256, 64, 80


@scratch("block_score")
def block_score(ws: Workspace, q: Tensor, k: Tensor, *rest: Any) -> None:
    """Of every worker: the queries of a task, a packed key tile, a product, and sums of its tiles."""
    if ws.on_cuda:
        return
    _, H, D = q.shape
    ws.take((H * ROWS * D + D * TILE + TILE * STRIDE * (1 + ROWS // TILE) + 64) * statistics(q) * ws.threads)
