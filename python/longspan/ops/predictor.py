"""The predictor of block scores: two small networks on normed rows, a query and a key of each block."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from longspan.ops.blocks import TokenBlocks

Side = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class PredictorWeights:
    """query, key: (W1 [r1,C], W2 [r2,r1], W3 [d,r2]) each, without biases, of one dtype.

    A block's vector is W3 h, h the largest of relu(W2 relu(W1 x_t)) over its tokens t, unit by unit: as in the scores
    that it predicts, a token's heads are added up before the largest is taken. Both networks may have other numbers of
    hidden units; d is that of both.
    """

    query: Side
    key: Side

    def check(self, where: str, columns: int | None = None) -> None:
        """Raises ValueError, naming `where`, for shapes that do not fit together, or not C columns."""
        inputs, width = self.query[0].shape[-1] if columns is None else columns, self.query[2].shape[0]
        for name, (w1, w2, w3) in (("query", self.query), ("key", self.key)):
            wanted = ((w1.shape[0], inputs), (w2.shape[0], w1.shape[0]), (width, w2.shape[0]))
            if (w1.shape, w2.shape, w3.shape) != wanted:
                raise ValueError(
                    f"{where}: the {name} weights are {tuple(w1.shape)}, {tuple(w2.shape)}, {tuple(w3.shape)}; they "
                    f"must be [r1, {inputs}], [r2, r1], [{width}, r2]"
                )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All six matrices, those of the query first."""
        return (*self.query, *self.key)


@torch.no_grad()
def predictor_score(x: Tensor, weights: PredictorWeights, blocks: TokenBlocks) -> Tensor:
    """s_n = <sum_m Q_m, K_n>, m over all blocks of the segment of n: what `predictor_pairs` sums up to.

    x: [M,C], the normed rows, float32 (float64) or 16-bit; weights in its dtype. Returns s [N] of all blocks, float32
    (float64). No gradient. Cost: O(M) products and no [N,N]: nothing but a sum stands between pairs and score, so that
    the sum over m goes inside (exactly). Sums over blocks are in float32 or wider. Transient: M (r1 + r2) numbers.
    Raises ValueError for what does not fit.
    Source: LeMo (Wang et al. 2025, section 3: tokens singly, then aggregated); the identity is ours.
    """
    _check(x, weights, blocks)
    queries, keys = (_network(x, side, blocks) for side in (weights.query, weights.key))
    borders = itertools.pairwise(blocks.cu_blocks)
    return torch.cat([keys.new_zeros(0), *(keys[a:b] @ queries[a:b].sum(0) for a, b in borders)])


def predictor_pairs(
    x: Tensor, weights: PredictorWeights, blocks: TokenBlocks, *, zeros: Sequence[Tensor] | None = None
) -> Tensor:
    """A[s,m,n] = <Q_m, K_n> of every pair of blocks of a segment: [S,N,N], N = blocks.most, 0 elsewhere.

    The form that is trained against `block_score`; differentiable in the weights, x is a constant. Shapes and dtypes as
    `predictor_score`; returns float32 (float64). zeros: int64 counters of the second hidden layers (the query's, the
    key's), to each unit of which the number of blocks is added where it is 0. Raises ValueError for what does not fit.
    """
    _check(x, weights, blocks)
    sides = zip((weights.query, weights.key), (None, None) if zeros is None else zeros, strict=True)
    queries, keys = (_network(x.detach(), side, blocks, counted) for side, counted in sides)
    made = []
    for a, b in itertools.pairwise(blocks.cu_blocks):
        made.append(functional.pad(queries[a:b] @ keys[a:b].mT, (0, blocks.most - (b - a)) * 2))
    return torch.stack(made) if made else queries.new_zeros(0, blocks.most, blocks.most)


def _network(x: Tensor, weights: Side, blocks: TokenBlocks, zeros: Tensor | None = None) -> Tensor:
    """The blocks' vectors [N,d] in float32 (float64)."""
    first, second, last = weights
    tokens = functional.relu(functional.linear(functional.relu(functional.linear(x, first)), second))
    hidden = blocks.gather(tokens).amax(1)  # a token that a block does not have counts 0, as every relu may
    if zeros is not None:
        zeros += (hidden.detach() == 0).sum(0)
    return functional.linear(hidden, last).to(torch.float64 if x.dtype == torch.float64 else torch.float32)


def _check(x: Tensor, weights: PredictorWeights, blocks: TokenBlocks) -> None:
    if x.dim() != 2 or not x.dtype.is_floating_point:
        raise ValueError(f"predictor_score: x is {x.dtype} {tuple(x.shape)}; it must be floating point [M,C]")
    weights.check("predictor_score", x.shape[1])
    for weight in weights.tensors:
        if weight.dtype != x.dtype or weight.device != x.device:
            raise ValueError(
                f"predictor_score: a weight is {weight.dtype} on {weight.device}; x is {x.dtype} on {x.device}"
            )
    if blocks.rows != x.shape[0]:
        raise ValueError(f"predictor_score: the blocks are of {blocks.rows} rows; x has {x.shape[0]}")
