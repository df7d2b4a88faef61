"""Rows of a batch that take part: gathered, scattered back, and the residual stream that the others ride."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from longspan.ops._rows import check_distinct
from longspan.ops.lora import Projection, norm_lora_linear
from longspan.ops.norm import Norm


def gather_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows `rows` of x: [M,C] -> [K,C]. Saved: the numbers. The gradient is zero on other rows.

    x: any dtype; rows: int64 [K], different from each other. Raises ValueError for wrong shapes and types. The adjoint
    of `scatter_add_rows` to a stream of zeros.
    """
    _check("gather_rows", x, rows)
    out: Tensor = _Gather.apply(x, rows)
    return out


def scatter_add_rows(x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """x [M,C] with y [K,C] added to its rows `rows` (int64 [K], different from each other), in a new tensor.

    Saved: the numbers. Deterministic: no row is written twice. Raises ValueError for wrong shapes and types.
    """
    _check("scatter_add_rows", x, rows)
    _check_values("scatter_add_rows", x, y, rows)
    out: Tensor = _ScatterAdd.apply(x, y, rows)
    return out


def norm_gather_linear(
    x: Tensor, rows: Tensor, projections: Sequence[Projection], norm: Norm | None = None
) -> tuple[Tensor, ...]:
    """Each projection of norm(x[rows]): x [M,C] and rows int64 [K] give one y [K,N_i] each; see `norm_lora_linear`.

    The gathered rows are what the norm saves: x may be overwritten afterwards, and nothing of other rows is kept.
    """
    return norm_lora_linear(gather_rows(x, rows), projections, norm)


def linear_scatter_add_(x: Tensor, o: Tensor, projection: Projection, rows: Tensor) -> Tensor:
    """x[rows] += o W^T + bias + scaling (o A^T) B^T, in place; returns x.

    x: [M,C], not a leaf that requires grad; o: [K,N], as `norm_lora_linear` takes it; projection: of N to C columns,
    without residual; rows: int64 [K], different from each other. Differentiable, once, in x (whose gradient passes as
    it is), o and the projection's tensors. Torch counts the write: a backward that needs what x was raises. Saved: the
    numbers, and of the projection what `lora_linear` saves. Deterministic.

    Raises ValueError for what does not fit. Source: LeMo (Wang et al. 2025, section 4), without reading x back.
    """
    _check("linear_scatter_add_", x, rows)
    if projection.residual is not None:
        raise ValueError("linear_scatter_add_: the projection has a residual; x is what it is added to")
    with torch.no_grad():
        before = x.index_select(0, rows)
    y = norm_lora_linear(o, [replace(projection, residual=before)])[0]
    _check_values("linear_scatter_add_", x, y, rows)
    out: Tensor = _Write.apply(x, y, rows)
    return out


class KeptRows:
    """A branch that only some rows of the residual stream go through, without a gradient of zeros for the others.

    `enter` gathers the rows, one of the `leave` puts what the branch made of them (their residual included) back into
    the stream. Every other row is the stream's, bit for bit, and its gradient passes unchanged. The two belong
    together: what arrives at `leave` in the backward waits for the rows' gradient at `enter`, so that one buffer of the
    stream's size is all there is. What is saved is the numbers of the rows.
    """

    def __init__(self, rows: Tensor) -> None:
        if rows.dim() != 1 or rows.dtype != torch.int64:
            raise ValueError(f"KeptRows: rows is {rows.dtype} {tuple(rows.shape)}; it must be int64 [K]")
        self.rows = rows
        self._waiting: Tensor | None = None

    def enter(self, x: Tensor) -> Tensor:
        """Rows of the stream x [M,C] -> [K,C]. Raises ValueError for what does not fit."""
        _check("KeptRows.enter", x, self.rows)
        out: Tensor = _Enter.apply(x, self)
        return out

    def leave(self, x: Tensor, y: Tensor) -> Tensor:
        """A new stream [M,C]: x with rows y [K,C]. Raises ValueError for what does not fit."""
        _check("KeptRows.leave", x, self.rows)
        _check_values("KeptRows.leave", x, y, self.rows)
        with torch.no_grad():
            stream = x.index_copy(0, self.rows, y)
        return self._left(x, y, stream)

    def leave_as(self, x: Tensor, y: Tensor, stream: Tensor) -> Tensor:
        """`stream` [M,C], computed without a graph, with the gradient of `leave`: what to use when all rows went
        through the branch and only these are to be differentiated. Raises ValueError for what does not fit.
        """
        _check("KeptRows.leave_as", x, self.rows)
        _check_values("KeptRows.leave_as", x, y, self.rows)
        if stream.shape != x.shape or stream.requires_grad:
            raise ValueError(
                f"KeptRows.leave_as: stream has shape {tuple(stream.shape)}, requires_grad {stream.requires_grad}; it "
                f"must be {tuple(x.shape)} and computed without a graph"
            )
        return self._left(x, y, stream)

    def _left(self, x: Tensor, y: Tensor, stream: Tensor) -> Tensor:
        out: Tensor = _Leave.apply(x, y, self, (stream,))
        return out


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.size = x.shape[0]
        return x.index_select(0, rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None]:
        zeros = dy.new_zeros((ctx.size, *dy.shape[1:]))
        return _ScatterAdd.apply(zeros, dy, ctx.saved_tensors[0]), None


class _ScatterAdd(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.index_copy(0, rows, x.index_select(0, rows).add_(y))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        return dy, _Gather.apply(dy, ctx.saved_tensors[0]), None


class _Write(Function):
    """Rows of x overwritten by x + something: to x's gradient the write is not there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.mark_dirty(x)
        return x.index_copy_(0, rows, y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor, None]:
        return dy, dy.index_select(0, ctx.saved_tensors[0]), None


class _Enter(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: KeptRows) -> Tensor:
        ctx.kept = kept
        return x.index_select(0, kept.rows)

    @staticmethod
    def backward(ctx: Any, drows: Tensor) -> tuple[Tensor, None]:
        kept = ctx.kept
        dx, kept._waiting = kept._waiting, None
        if dx is None:
            raise RuntimeError("KeptRows: rows were entered and never left; their gradient has no stream to join")
        return dx.index_copy_(0, kept.rows, drows), None


class _Leave(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, kept: KeptRows, stream: tuple[Tensor]) -> Tensor:
        ctx.kept = kept
        return stream[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, Tensor | None, None, None]:
        if ctx.needs_input_grad[0]:
            ctx.kept._waiting = dy.clone(memory_format=torch.contiguous_format)  # another node may hold dy
        return None, dy.index_select(0, ctx.kept.rows) if ctx.needs_input_grad[1] else None, None, None


def _check(name: str, x: Tensor, rows: Tensor) -> None:
    if rows.dim() != 1 or rows.dtype != torch.int64 or rows.device != x.device:
        raise ValueError(
            f"{name}: rows is {rows.dtype} {tuple(rows.shape)} on {rows.device}; it must be int64 [K] on {x.device}"
        )
    if x.dim() != 2:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; it must be [M,C]")
    check_distinct(f"{name}: rows", rows, x.shape[0])


def _check_values(name: str, x: Tensor, y: Tensor, rows: Tensor) -> None:
    if y.shape != (len(rows), x.shape[1]) or y.dtype != x.dtype or y.device != x.device:
        raise ValueError(
            f"{name}: the rows' values are {y.dtype} {tuple(y.shape)} on {y.device}; they must be {x.dtype} "
            f"{(len(rows), x.shape[1])} on {x.device}"
        )
