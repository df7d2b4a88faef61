"""Row norms: csrc/kernels/norm/{fwd_cpu,bwd_cpu}.cpp and bwd.cu."""

from __future__ import annotations

from torch import Tensor

from longspan.ops._define import scratch
from longspan.ops.scratch.workspace import Workspace, ceil_div, narrow, statistics

CHUNKS, CUDA_CHUNKS = 64, 1024


def norm_rows(ws: Workspace, columns: int, element: int, narrow_rows: bool) -> None:
    """norm_fwd_cpu."""
    ws.take(max(columns, 1) * element)
    ws.take(max(columns, 1) * element)
    if narrow_rows:
        ws.take(2 * columns * 4 * ws.threads)


def norm_gradient(ws: Workspace, rows: int, columns: int, element: int, dweight: bool, dbias: bool) -> None:
    """norm_bwd_cpu."""
    chunks = ceil_div(rows, max(ceil_div(rows, CHUNKS), 16))
    ws.take(max(columns, 1) * element)
    for wanted in (dweight, dbias):
        if wanted:
            ws.take(max(chunks * columns, 1) * 8)
    ws.take(max(2 * columns * ws.threads, 1) * element)


@scratch("norm_fwd")
def forward(
    ws: Workspace,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    centered: bool,
    eps: float,
    weight_offset: float,
) -> None:
    """Weight and bias in the type of the sums; two rows of every worker for 16-bit rows."""
    if not ws.on_cuda:
        norm_rows(ws, x.shape[1], statistics(x), narrow(x))


@scratch("norm_bwd")
def backward(
    ws: Workspace,
    dy: Tensor,
    dsum: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rstd: Tensor,
    mean: Tensor,
    centered: bool,
    weight_offset: float,
    need_dweight: bool,
    need_dbias: bool,
) -> None:
    """Sums over chunks of rows."""
    rows, columns = x.shape
    need_dweight, need_dbias = need_dweight and weight is not None, need_dbias and bias is not None
    if not ws.on_cuda:
        return norm_gradient(ws, rows, columns, statistics(x), need_dweight, need_dbias)
    for wanted in (need_dweight, need_dbias):
        if wanted:
            ws.take(min(CUDA_CHUNKS, rows) * columns * 4)
    return None
