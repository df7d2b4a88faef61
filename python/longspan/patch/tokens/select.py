"""The blocks that take part in a layer: by predicted or exact scores, by chance, by what the backward brings."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from longspan import ops
from longspan.patch.tokens.state import LayerTokens
from longspan.patch.tokens.stream import Stream

if TYPE_CHECKING:
    from longspan.patch.layers.layer import Layer

Score = Callable[["Layer", LayerTokens, Tensor, Stream], Tensor]


@torch.no_grad()
def score_before(layer: Layer, tokens: LayerTokens, rows: Tensor, stream: Stream) -> Tensor:
    """Scores [N] of the blocks of a layer's input, rows [M,C]."""
    own = tokens.config.block_scores(rows, stream.blocks)
    return BEFORE_SCORES[tokens.config.selector](layer, tokens, rows, stream) if own is None else own


def keep(tokens: LayerTokens, scores: Tensor, stream: Stream, ratio: float | None = None) -> ops.KeptBlocks:
    """The blocks to keep: of the layer's threshold or ratio, or of `ratio`. Told to who watches the layer."""
    config = tokens.config
    rule: dict[str, Any] = {"keep_ratio": config.keep_ratio if ratio is None else ratio}
    if tokens.threshold is not None and ratio is None:
        rule = {"threshold": tokens.threshold}
    forced = {"force_first": config.force_first, "force_last": config.force_last}
    kept = ops.select_blocks(scores, stream.blocks, **rule, **forced)
    if tokens.watch is not None:
        tokens.watch(scores, kept)
    return kept


def block_means(values: Tensor, stream: Stream) -> Tensor:
    """The mean over each block's tokens of values [M]: [N]."""
    return stream.blocks.gather(values).sum(1) / stream.blocks.counts


def block_maxima(values: Tensor, stream: Stream) -> Tensor:
    """The largest value among each block's tokens, of values [M]: [N]."""
    return stream.blocks.gather(values, fill=-torch.inf).amax(1)


def row_norms(x: Tensor) -> Tensor:
    """The Euclidean norm of each row of x [M,F], in float32 or wider: [M]."""
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32)


def _predicted(layer: Layer, tokens: LayerTokens, rows: Tensor, stream: Stream) -> Tensor:
    z = layer.norm(layer.state.family.norm1, rows)
    return ops.predictor_score(z, tokens.predictor(layer.layer, z), stream.blocks)


def exact_pairs(layer: Layer, rows: Tensor, stream: Stream) -> Tensor:
    """Scores [S,N,N] of the pairs of blocks of a layer's input, from its queries and keys before the rotation."""
    quiet = replace(layer, batch=1, recompute="none", shelf=None)
    made = quiet.normed_heads(quiet.linears(layer.state.family.norm1, layer.state.family.qkv, rows))
    q, k, _ = quiet.by_head(made)
    return ops.block_score(q, k, stream.blocks)


def _exact(layer: Layer, tokens: LayerTokens, rows: Tensor, stream: Stream) -> Tensor:
    return column_sums(exact_pairs(layer, rows, stream), stream)


def column_sums(pairs: Tensor, stream: Stream) -> Tensor:
    """The scores [N] of all blocks from those of their pairs [S,N,N]."""
    sums, borders = pairs.sum(1), stream.blocks.cu_blocks
    sizes = [b - a for a, b in itertools.pairwise(borders)]
    parts = [sums[segment, :size] for segment, size in enumerate(sizes)]
    return torch.cat(parts) if parts else sums.new_zeros(0)


def _random(layer: Layer, tokens: LayerTokens, rows: Tensor, stream: Stream) -> Tensor:
    return torch.rand(stream.blocks.cu_blocks[-1], device=rows.device)


BEFORE_SCORES: dict[str, Score] = {
    "predictor": _predicted,
    "scores": _exact,
    "random": _random,
}


def score_late(tokens: LayerTokens, gradient: Tensor, stream: Stream) -> Tensor:
    """Scores [N] from what the backward knows: the layer's incoming gradient [M,C], and the tokens' losses."""
    if tokens.config.selector == "gradient":
        return block_means(row_norms(gradient), stream)
    losses = tokens.signals.losses
    if losses is None or len(losses) != len(gradient):
        raise RuntimeError(
            f"{tokens.path}: selector token_loss found no loss of this forward's tokens; labels must go to the model"
        )
    return block_means(losses, stream)
