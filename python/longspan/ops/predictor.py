"""The predictor of block scores: two small networks on a block's normed rows, a query and a key of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from longspan.ops.blocks import TokenBlocks

# Blocks whose flattened rows exist at a time in `predictor_score`.
CHUNK = 64


@dataclass(frozen=True)
class PredictorWeights:
    """query, key: (W1 [r1, block * piece], W2 [r2, r1], W3 [piece, r2]) each, without biases, of one dtype.

    A row of C channels is cut into ceil(C / piece) pieces, the last one filled up with zeros; all pieces share the
    weights. Hidden units of both networks may differ in number.
    """

    query: tuple[Tensor, Tensor, Tensor]
    key: tuple[Tensor, Tensor, Tensor]
    block: int
    piece: int

    def check(self, where: str) -> None:
        """Raises ValueError, naming `where`, for shapes that do not fit together."""
        for name, (w1, w2, w3) in (("query", self.query), ("key", self.key)):
            wanted = ((w1.shape[0], self.block * self.piece), (w2.shape[0], w1.shape[0]), (self.piece, w2.shape[0]))
            if (w1.shape, w2.shape, w3.shape) != wanted:
                raise ValueError(
                    f"{where}: the {name} weights are {tuple(w1.shape)}, {tuple(w2.shape)}, {tuple(w3.shape)}; with "
                    f"blocks of {self.block} and pieces of {self.piece} they must be [r1, {self.block * self.piece}], "
                    f"[r2, r1], [{self.piece}, r2]"
                )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All six matrices, those of the query first."""
        return (*self.query, *self.key)


@torch.no_grad()
def predictor_score(x: Tensor, weights: PredictorWeights, blocks: TokenBlocks) -> Tensor:
    """s_n = sum_p <sum_m Q[m,p], K[n,p]>, m over all blocks of the segment of n: what `predictor_pairs` sums up to.

    x: [M,C], the normed rows, float32 (float64) or 16-bit; weights in its dtype. Returns s [N] of all blocks, float32
    (float64). No gradient. Cost: O(M) products and no [N,N]: nothing but a sum stands between pairs and score, so that
    the sum over m goes inside (exactly). Sums over blocks are in float32 or wider. Transient: CHUNK blocks.
    Source: LeMo (Wang et al. 2025, section 3); the identity is ours.
    """
    _check(x, weights, blocks)
    count = len(blocks.starts)
    if not count:
        return x.new_zeros(0, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)
    made = []
    for begin in range(0, count, CHUNK):
        flat = flatten_blocks(x, weights, blocks, begin, min(begin + CHUNK, count))
        made.append([_network(flat, side) for side in (weights.query, weights.key)])
    queries, keys = (torch.cat(side) for side in zip(*made, strict=True))
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    queries, keys = queries.flatten(1).to(wide), keys.flatten(1).to(wide)
    borders = itertools.pairwise(blocks.cu_blocks)
    return torch.cat([keys[a:b] @ queries[a:b].sum(0) for a, b in borders])


def predictor_pairs(
    x: Tensor, weights: PredictorWeights, blocks: TokenBlocks, *, zeros: Sequence[Tensor] | None = None
) -> Tensor:
    """A[s,m,n] = sum_p <Q[m,p], K[n,p]> of every pair of blocks of a segment: [S,N,N], N = blocks.most, 0 elsewhere.

    The form that is trained against `block_score`; differentiable in the weights, x is a constant. Shapes and dtypes as
    `predictor_score`; returns float32 (float64). zeros: int64 counters of the four hidden layers (the query's two, the
    key's two), to each unit of which the number of blocks and pieces is added where it is not positive.
    """
    _check(x, weights, blocks)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    flat = flatten_blocks(x.detach(), weights, blocks, 0, len(blocks.starts))
    counters = (None, None) if zeros is None else (zeros[:2], zeros[2:])
    sides = zip((weights.query, weights.key), counters, strict=True)
    queries, keys = (_network(flat, side, counted).flatten(1).to(wide) for side, counted in sides)
    made = []
    for a, b in itertools.pairwise(blocks.cu_blocks):
        made.append(functional.pad(queries[a:b] @ keys[a:b].mT, (0, blocks.most - (b - a)) * 2))
    return torch.stack(made) if made else x.new_zeros(0, blocks.most, blocks.most, dtype=wide)


def _network(flat: Tensor, weights: Sequence[Tensor], zeros: Sequence[Tensor] | None = None) -> Tensor:
    """[n, P, block * piece] -> [n, P, piece]."""
    *inner, last = weights
    for place, weight in enumerate(inner):
        flat = functional.linear(flat, weight)
        if zeros is not None:
            zeros[place] += (flat.detach() <= 0).flatten(0, -2).sum(0)
        flat = functional.relu(flat)
    return functional.linear(flat, last)


def flatten_blocks(x: Tensor, weights: PredictorWeights, blocks: TokenBlocks, begin: int, end: int) -> Tensor:
    """Blocks `begin` to `end` as the networks take them: [n, P, block * piece]."""
    pieces = -(-x.shape[1] // weights.piece)
    rows = blocks.gather(x, begin, end)  # [n, block, C]
    rows = functional.pad(rows, (0, pieces * weights.piece - x.shape[1]))
    return rows.unflatten(2, (pieces, weights.piece)).transpose(1, 2).flatten(2)


def _check(x: Tensor, weights: PredictorWeights, blocks: TokenBlocks) -> None:
    if x.dim() != 2 or not x.dtype.is_floating_point:
        raise ValueError(f"predictor_score: x is {x.dtype} {tuple(x.shape)}; it must be floating point [M,C]")
    weights.check("predictor_score")
    for weight in weights.tensors:
        if weight.dtype != x.dtype or weight.device != x.device:
            raise ValueError(
                f"predictor_score: a weight is {weight.dtype} on {weight.device}; x is {x.dtype} on {x.device}"
            )
    if blocks.rows != x.shape[0] or blocks.block != weights.block:
        raise ValueError(
            f"predictor_score: the blocks are of {blocks.block} tokens in {blocks.rows} rows; the predictor has blocks "
            f"of {weights.block} and x {x.shape[0]} rows"
        )
