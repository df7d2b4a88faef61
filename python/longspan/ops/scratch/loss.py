"""The segmented loss: csrc/kernels/loss/linear_cross_entropy_{cpu.cpp,cuda.cu}."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from longspan.ops._define import scratch
from longspan.ops.scratch.gemm import OwnGemm
from longspan.ops.scratch.workspace import Workspace, ceil_div, round_up, statistics


def _counted(labels: Tensor, row_weights: Tensor | None, ignore_index: int) -> tuple[int, bool]:
    """Rows that count, and whether others lie between them; all of them where the labels have no values."""
    if type(labels) is not Tensor or isinstance(row_weights, FakeTensor) or labels.is_meta:
        return labels.shape[0], False
    counts = labels != ignore_index
    if row_weights is not None:
        counts = counts & (row_weights != 0)
    index = counts.nonzero()
    return index.shape[0], index.shape[0] > 0 and int(index[-1] - index[0]) != index.shape[0] - 1


@scratch("linear_cross_entropy")
def forward(
    ws: Workspace,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_weights: Tensor | None,
    segment: int,
    ignore_index: int,
    logit_scale: float,
    logit_softcap: float,
    per_row: bool,
    need_dhidden: bool,
    need_dweight: bool,
    need_dbias: bool,
) -> None:
    """A segment of logits; rows that are gathered; float sums of a bfloat16 weight's gradient."""
    (T, C), V, e, stat = hidden.shape, weight.shape[0], hidden.element_size(), statistics(hidden)
    if ws.on_cuda:
        return _cuda(ws, T, C, V, e, segment, need_dhidden or need_dweight or need_dbias, need_dweight, need_dbias)
    ws.take(T * 8)
    ws.take(T * 8)
    if need_dbias:
        ws.take(V * 8)
    count, gathers = _counted(labels, row_weights, ignore_index)
    if not count:
        return None
    segments = ceil_div(count, segment)
    longest = ceil_div(count, segments)
    short = e < stat
    if need_dweight and short and segments > 1:
        ws.take(V * C * 4)
    ws.take(longest * (round_up(V, 16) + 16) * stat)
    if gathers:
        ws.take(longest * C * e)
        if need_dhidden:
            ws.take(longest * C * e)
    gemm = OwnGemm(ws, stat)
    gemm.run(longest, V, C, in_place=not short, rounds=False)
    if need_dhidden:
        gemm.run(longest, C, V, in_place=True, rounds=hidden.dtype == torch.bfloat16)
    if need_dweight:
        gemm.run(V, C, longest, in_place=False, rounds=short and segments == 1)
    return None


def _cuda(
    ws: Workspace, T: int, C: int, V: int, e: int, segment: int, gradient: bool, need_dweight: bool, need_dbias: bool
) -> None:
    segments = ceil_div(T, segment)
    longest, stride = ceil_div(T, segments), round_up(V, 16) + 16
    ws.take(longest * stride * 4 + T * 4)
    if gradient and e < 4:
        ws.take(longest * stride * e)
    if need_dweight and segments > 1:
        ws.take(V * C * 4 * (2 if e < 4 else 1))
    if need_dbias:
        ws.take(V * 4)
