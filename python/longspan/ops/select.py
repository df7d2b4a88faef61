"""Which blocks of tokens take part in a layer: scores of pairs of blocks, and the blocks that are kept."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops.blocks import TokenBlocks
from longspan.ops.pattern import MOST

MAX_HEAD_DIM = 256


@torch.no_grad()
def block_score(
    q: Tensor,
    k: Tensor,
    blocks: TokenBlocks,
    *,
    causal: bool = False,
    symmetrise: bool = False,
    scale: float | None = None,
) -> Tensor:
    """How much pairs of blocks have to do with each other, from raw attention logits; no gradient.

        A[s,m,n] = scale / H * max over i in block m, j in block n of sum_h max(<q[i,h], k[j, h // (H // K)]>, 0)

    q: [M,H,D]; k: [M,K,D], float32, bfloat16, float64 on the CPU, float16 on CUDA, any strides with D contiguous,
    H a multiple of K, D 1 to 256; LeMo takes them before the rotary embedding. blocks: of the M rows. causal: pairs
    with j > i count 0. symmetrise: A + A^T with the diagonal once, so that a block is also credited for what it reads;
    a causal column sum without it measures position. scale: default D ** -0.5, not negative.

    Returns A [S,N,N], N = blocks.most, float32 (float64 for float64), 0 where a segment has no such block; the sum over
    m is a block's score. Pairs of different segments never meet and nothing of the size T x T exists. Deterministic.

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: LeMo (Wang et al. 2025, section 3). The published factor 1 / (64 * 16) differs by a positive constant.
    """
    _check(q, k, blocks, scale)
    require("block_score", q)
    factor = q.shape[2] ** -0.5 if scale is None else scale
    scores: Tensor = op("block_score")(
        q.detach(), k.detach(), blocks.starts, blocks.counts, blocks.segments, blocks.most, factor, causal
    )
    return scores + (scores.mT - torch.diag_embed(scores.diagonal(dim1=1, dim2=2))) if symmetrise else scores


def _check(q: Tensor, k: Tensor, blocks: TokenBlocks, scale: float | None) -> None:
    for name, x in (("q", q), ("k", k)):
        if x.dim() != 3:
            raise ValueError(f"block_score: {name} has shape {tuple(x.shape)}; it must be [M, heads, D]")
        check_dtype("block_score", name, x, half=True)
        if x.shape[2] > 1 and x.stride(2) != 1:
            raise ValueError(f"block_score: the last dimension of {name} must be contiguous; call {name}.contiguous()")
    if k.dtype != q.dtype or k.device != q.device or k.shape[0] != q.shape[0] or k.shape[2] != q.shape[2]:
        raise ValueError(
            f"block_score: k is {k.dtype} {tuple(k.shape)} on {k.device} and q {q.dtype} {tuple(q.shape)} on "
            f"{q.device}; they must agree in all but the heads"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"block_score: {q.shape[1]} query heads are not a multiple of {k.shape[1]} key heads")
    if not 1 <= q.shape[2] <= MAX_HEAD_DIM:
        raise ValueError(f"block_score: head dimension D is {q.shape[2]}; allowed: 1 to {MAX_HEAD_DIM}")
    if blocks.rows != q.shape[0] or blocks.starts.device != q.device:
        raise ValueError(
            f"block_score: the blocks are of {blocks.rows} rows on {blocks.starts.device}; q has {q.shape[0]} on "
            f"{q.device}"
        )
    if scale is not None and not 0 <= scale < math.inf:
        raise ValueError(f"block_score: scale is {scale}; it must be finite and not negative")


def _fake(
    q: Tensor, k: Tensor, starts: Tensor, counts: Tensor, segments: Tensor, most: int, scale: float, causal: bool
) -> Tensor:
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty((segments.shape[0] - 1, most, most), dtype=statistics)


define(
    "block_score",
    "(Tensor q, Tensor k, Tensor starts, Tensor counts, Tensor segments, SymInt most_blocks, float scale, bool causal) "
    "-> Tensor",
    _fake,
)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.mark_non_differentiable(output)


def _backward(ctx: Any, dscores: Tensor | None) -> tuple[None, ...]:
    return (None,) * 8  # scores only choose


torch.library.register_autograd("longspan::block_score", _backward, setup_context=_setup)


@dataclass(frozen=True)
class KeptBlocks:
    """Blocks that take part: ids int32 [n] increasing, their rows int64 [K] increasing, and segments' borders in both.

    cu_ids, cu_rows: int32 [S+1].
    """

    ids: Tensor
    rows: Tensor
    cu_ids: Tensor
    cu_rows: Tensor


@torch.no_grad()
def select_blocks(
    scores: Tensor,
    blocks: TokenBlocks,
    *,
    keep_ratio: float | None = None,
    threshold: float | None = None,
    force_first: int = 0,
    force_last: int = 0,
) -> KeptBlocks:
    """The blocks with the highest scores, of every segment on its own; no gradient.

    scores: [N] of all blocks, floating point. keep_ratio: a segment of n blocks keeps max(1, floor(keep_ratio n)) of
    them (at least the forced ones); ties go to the earlier block. threshold: instead, keep those with a score of at
    least `threshold` times the segment's largest; ragged, and nothing where that is negative. force_first, force_last:
    blocks at a segment's ends that are kept in any case.

    With keep_ratio and full blocks nothing waits for the device. The same scores give the same blocks, in any order of
    segments. Raises ValueError unless exactly one of keep_ratio (0 to 1) and threshold is given, and for scores of
    another length. Source: LeMo (Wang et al. 2025, section 3); fixed ratio as in its released code.
    """
    _check_selection(scores, blocks, keep_ratio, threshold, force_first, force_last)
    if isinstance(scores, FakeTensor):
        return _fake_selection(scores, blocks, keep_ratio, force_first + force_last)
    device, count = scores.device, len(blocks.cu_blocks) - 1
    sizes = torch.tensor(blocks.cu_blocks).diff()
    segment = torch.repeat_interleave(torch.arange(count), sizes).to(device)
    place = torch.arange(len(scores)) - torch.tensor(blocks.cu_blocks)[:-1].repeat_interleave(sizes)
    forced = ((place < force_first) | (place >= sizes.repeat_interleave(sizes) - force_last)).to(device)
    if keep_ratio is not None:
        least = torch.minimum(sizes, torch.tensor(force_first + force_last))
        wanted = torch.maximum(least, (sizes * keep_ratio).floor().long().clamp(min=1)).minimum(sizes)
        ids = _highest(scores, segment, forced, wanted, place)
    else:
        assert threshold is not None
        top = scores.new_full((count,), -math.inf).scatter_reduce(0, segment, scores, "amax")
        ids = ((scores >= threshold * top[segment]) | forced).nonzero().flatten()
        wanted = torch.bincount(segment[ids], minlength=count)
    rows = blocks.rows_of(ids)
    cu_ids = _borders(wanted.to(device))
    ends = _borders(blocks.counts[ids])  # rows before each kept block
    return KeptBlocks(ids.int(), rows, cu_ids, ends[cu_ids.long()])


def _fake_selection(scores: Tensor, blocks: TokenBlocks, keep_ratio: float | None, forced: int) -> KeptBlocks:
    """The shapes of a selection (for a plan of memory), at most: with a threshold all blocks, and all of them full."""
    ids = rows = 0
    for a, b in itertools.pairwise(blocks.cu_blocks):
        wanted = b - a if keep_ratio is None else min(b - a, max(math.floor(keep_ratio * (b - a)), 1, forced))
        ids, rows = ids + wanted, rows + wanted * blocks.block
    sizes = (ids, torch.int32), (min(rows, blocks.rows), torch.int64)
    borders = (scores.new_empty(len(blocks.cu_blocks), dtype=torch.int32) for _ in range(2))
    return KeptBlocks(*(scores.new_empty(size, dtype=dtype) for size, dtype in sizes), *borders)


def _highest(scores: Tensor, segment: Tensor, forced: Tensor, wanted: Tensor, place: Tensor) -> Tensor:
    """Increasing ids of the `wanted` highest of every segment, forced ones first, ties to the earlier."""
    order = torch.sort(scores.masked_fill(forced, math.inf), descending=True, stable=True).indices
    order = order[torch.sort(segment[order], stable=True).indices]  # segments one after the other, best first
    kept = (place < wanted.repeat_interleave(torch.bincount(segment.cpu(), minlength=len(wanted)))).nonzero().flatten()
    return order[kept.to(order.device)].sort().values


def _borders(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()


def _check_selection(
    scores: Tensor,
    blocks: TokenBlocks,
    keep_ratio: float | None,
    threshold: float | None,
    force_first: int,
    force_last: int,
) -> None:
    if scores.shape != (blocks.cu_blocks[-1],) or not scores.dtype.is_floating_point:
        raise ValueError(
            f"select_blocks: scores is {scores.dtype} {tuple(scores.shape)}; it must be floating point "
            f"({blocks.cu_blocks[-1]},), one of each block"
        )
    if (keep_ratio is None) == (threshold is None):
        raise ValueError(
            f"select_blocks: keep_ratio is {keep_ratio} and threshold {threshold}; give exactly one of them"
        )
    if keep_ratio is not None and not 0 <= keep_ratio <= 1:
        raise ValueError(f"select_blocks: keep_ratio is {keep_ratio}; allowed: 0 to 1")
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"select_blocks: threshold is {threshold}; it must be finite")
    for name, value in (("force_first", force_first), ("force_last", force_last)):
        if not 0 <= value <= MOST:
            raise ValueError(f"select_blocks: {name} is {value}; it must not be negative, and be below 2^31")
