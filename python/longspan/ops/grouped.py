"""Matrix products of rows that are grouped by the weight blocks that they meet."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops._rows import last_contiguous

MAX_BLOCKS = 8


@dataclass(frozen=True)
class BlockSets:
    """Which rows meet which blocks: rows offsets[s] to offsets[s+1] meet the `active` blocks of set s.

    Sets are those of ``active`` out of ``blocks`` numbers, in the order of `itertools.combinations`; offsets: int32
    [sets + 1], from 0 to the number of rows. Block i of a slot stands where i stands in its set.
    """

    offsets: Tensor
    blocks: int
    active: int

    @property
    def count(self) -> int:
        """How many sets there are."""
        return math.comb(self.blocks, self.active)

    def members(self) -> list[tuple[int, ...]]:
        """The blocks of every set."""
        return list(itertools.combinations(range(self.blocks), self.active))


def grouped_expand(
    x: Tensor,
    weight: Tensor,
    sets: BlockSets,
    bias: Tensor | None = None,
    *,
    by_rows: bool = True,
    tail: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Each slot's columns of y [n, active Nb] from all of x [n,C] and the slot's block of the weight.

        y[t, slot Nb + j] = sum_c x[t,c] W_block[j,c] + bias[block Nb + j] + sum_r p[t,r] q_block[j,r]

    weight: [G Nb, C], or [C, G Nb] with by_rows false, of the dtype of x (float32, bfloat16, float64 on the CPU,
    float16 on CUDA); bias: [G Nb]; tail: p [n,R] and q, blocked and stored as a weight of R columns, both float32
    (float64 for float64), R at most 256. Only the blocks that rows meet are multiplied: active / G of the dense
    product.

    Differentiable in all tensors. Saved: x, weight and the tail by reference. Sums are in float32 or wider; the order
    of sums depends on the sets' sizes alone. Raises ValueError for what does not fit. Source: SPT (arXiv 2312.10365).
    """
    p, q = (None, None) if tail is None else tail
    _check("grouped_expand", x, weight, sets, bias=bias, p=p, q=q)
    y: Tensor = op("grouped_expand")(
        x, last_contiguous(weight), bias, p, q, sets.offsets, sets.blocks, sets.active, by_rows
    )
    return y


def grouped_reduce(
    x: Tensor,
    weight: Tensor,
    sets: BlockSets,
    bias: Tensor | None = None,
    *,
    by_rows: bool = False,
    tail: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """One sum y [n,N] over the columns of all slots of x [n, active Kb], each with its block of the weight.

        y[t,j] = sum over slots, c of x[t, slot Kb + c] W_block[j,c] + bias[j] + sum_r p[t,r] q[j,r]

    weight: [N, G Kb], or [G Kb, N] with by_rows; q: [N,R], or [R,N] with by_rows. Otherwise, errors too, as
    `grouped_expand`, whose adjoint it is with the same weight and the same by_rows.
    """
    p, q = (None, None) if tail is None else tail
    _check("grouped_reduce", x, weight, sets, bias=bias, p=p, q=q)
    y: Tensor = op("grouped_reduce")(
        x, last_contiguous(weight), bias, p, q, sets.offsets, sets.blocks, sets.active, by_rows
    )
    return y


@torch.no_grad()
def grouped_weight(a: Tensor, b: Tensor, sets: BlockSets, *, by_rows: bool = True, wide: bool = False) -> Tensor:
    """The gradient of a weight: sum_t a[t, slot Nb + j] b[t,c] over the rows of each block: [G Nb, C] or its transpose.

    a: [n, active Nb], b: [n,C], of one dtype; by_rows false gives [C, G Nb]; wide: in float32 instead of the dtype of
    a. Blocks without rows get 0. Nothing is differentiable. Raises ValueError for what does not fit.
    """
    _check_sets("grouped_weight", a, sets)
    _check_beside("grouped_weight", a, b=b)
    if b.dim() != 2 or b.shape[0] != a.shape[0] or b.dtype != a.dtype or a.shape[1] % sets.active:
        raise ValueError(
            f"grouped_weight: a is {a.dtype} {tuple(a.shape)} and b {b.dtype} {tuple(b.shape)}; they must have "
            f"the same rows and dtype, and a {sets.active} slots of columns"
        )
    dweight: Tensor = op("grouped_weight")(
        last_contiguous(a), last_contiguous(b), sets.offsets, sets.blocks, sets.active, by_rows, wide
    )
    return dweight


def _check_sets(name: str, x: Tensor, sets: BlockSets) -> None:
    if x.dim() != 2:
        raise ValueError(f"{name}: the rows have shape {tuple(x.shape)}; they must be [n, columns]")
    check_dtype(name, "the rows", x, half=True)
    if not (1 <= sets.blocks <= MAX_BLOCKS and 1 <= sets.active <= sets.blocks):
        raise ValueError(
            f"{name}: {sets.active} of {sets.blocks} blocks are active; allowed: 1 to all of 1 to {MAX_BLOCKS} blocks"
        )
    offsets = sets.offsets
    if offsets.dtype != torch.int32 or offsets.shape != (sets.count + 1,) or offsets.device != x.device:
        raise ValueError(
            f"{name}: offsets are {offsets.dtype} {tuple(offsets.shape)} on {offsets.device}; {sets.count} sets take "
            f"int32 ({sets.count + 1},) on {x.device}"
        )
    require(name, x)


def _check(name: str, x: Tensor, weight: Tensor, sets: BlockSets, **beside: Tensor | None) -> None:
    _check_sets(name, x, sets)
    if weight.dim() != 2 or weight.dtype != x.dtype or weight.device != x.device:
        raise ValueError(
            f"{name}: the weight is {weight.dtype} {tuple(weight.shape)} on {weight.device}; it must be a matrix of "
            f"{x.dtype} on {x.device}"
        )
    _check_beside(name, x, **beside)


def _check_beside(name: str, rows: Tensor, **beside: Tensor | None) -> None:
    for label, other in beside.items():
        if other is not None and other.device != rows.device:
            raise ValueError(f"{name}: {label} is on {other.device} and the rows on {rows.device}; move it there")


def _expand_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, p: Tensor | None, q: Tensor | None, offsets: Tensor, *spec: Any
) -> Tensor:
    blocks, active, by_rows = spec
    return x.new_empty((x.shape[0], weight.shape[0 if by_rows else 1] // blocks * active))


def _reduce_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, p: Tensor | None, q: Tensor | None, offsets: Tensor, *spec: Any
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[1 if spec[2] else 0]))


def _weight_fake(a: Tensor, b: Tensor, offsets: Tensor, blocks: int, active: int, by_rows: bool, wide: bool) -> Tensor:
    columns = a.shape[1] // active * blocks
    statistics = torch.float64 if a.dtype == torch.float64 else torch.float32
    shape = (columns, b.shape[1]) if by_rows else (b.shape[1], columns)
    return a.new_empty(shape, dtype=statistics if wide else a.dtype)


_ARGUMENTS = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? tail_p, Tensor? tail_q, Tensor offsets, int blocks, int active, "
    "bool by_rows) -> Tensor"
)
define("grouped_expand", _ARGUMENTS, _expand_fake)
define("grouped_reduce", _ARGUMENTS, _reduce_fake)
define(
    "grouped_weight",
    "(Tensor a, Tensor b, Tensor offsets, int blocks, int active, bool by_rows, bool wide) -> Tensor",
    _weight_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, p, q, offsets, *ctx.spec = inputs
    ctx.bias = bias is not None
    ctx.save_for_backward(x, weight, p, q, offsets)


def _product(name: str, ctx: Any, x: Tensor, weight: Tensor, offsets: Tensor) -> Tensor:
    y: Tensor = op(name)(last_contiguous(x), last_contiguous(weight), None, None, None, offsets, *ctx.spec)
    return y


def _expand_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, p, q, offsets = ctx.saved_tensors
    wants, dy = ctx.needs_input_grad, last_contiguous(dy)

    def blocked(rows: Tensor, other: Tensor) -> Tensor:
        found: Tensor = op("grouped_weight")(rows, last_contiguous(other), offsets, *ctx.spec, True)
        return found

    dx = _product("grouped_reduce", ctx, dy, weight, offsets) if wants[0] else None
    dweight = blocked(dy, x).to(weight.dtype) if wants[1] else None
    dbias = blocked(dy, dy.new_ones((dy.shape[0], 1))).flatten().to(dy.dtype) if wants[2] else None
    # A tail is wider than 16-bit rows, and so are its gradients.
    wide = dy.to(p.dtype) if wants[3] or wants[4] else dy
    dp = _product("grouped_reduce", ctx, wide, q, offsets) if wants[3] else None
    dq = blocked(wide, p) if wants[4] else None
    return dx, dweight, dbias, dp, dq, None, None, None, None


def _reduce_backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, p, q, offsets = ctx.saved_tensors
    wants, by_rows, dy = ctx.needs_input_grad, ctx.spec[2], last_contiguous(dy)
    dx = _product("grouped_expand", ctx, dy, weight, offsets) if wants[0] else None
    dweight = None
    if wants[1]:
        dweight = op("grouped_weight")(last_contiguous(x), dy, offsets, *ctx.spec, True).to(weight.dtype)
    dbias = dy.sum(0) if wants[2] else None
    wide = dy.to(p.dtype) if wants[3] or wants[4] else dy
    dp = wide @ (q.mT if by_rows else q) if wants[3] else None
    dq = (p.mT @ wide if by_rows else wide.mT @ p) if wants[4] else None
    return dx, dweight, dbias, dp, dq, None, None, None, None


def _setup_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)


def _weight_backward(ctx: Any, dy: Tensor) -> tuple[None, ...]:
    return (None,) * 7  # a gradient itself


torch.library.register_autograd("longspan::grouped_expand", _expand_backward, setup_context=_save)
torch.library.register_autograd("longspan::grouped_reduce", _reduce_backward, setup_context=_save)
torch.library.register_autograd("longspan::grouped_weight", _weight_backward, setup_context=_setup_weight)
