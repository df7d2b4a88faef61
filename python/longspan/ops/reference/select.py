"""Scores of pairs of token blocks by their definition, pair by pair of blocks."""

from __future__ import annotations

import torch
from torch import Tensor


def block_score(
    q: Tensor, k: Tensor, blocks: list[list[tuple[int, int]]], *, causal: bool = False, scale: float | None = None
) -> Tensor:
    """q [M,H,D], k [M,K,D]; blocks: (first row, rows) of every block, by segment -> [S,N,N]."""
    heads, dim = q.shape[1:]
    k = k.repeat_interleave(heads // k.shape[1], 1)
    most = max((len(segment) for segment in blocks), default=0)
    scores = q.new_zeros((len(blocks), most, most))
    factor = dim**-0.5 if scale is None else scale
    for s, segment in enumerate(blocks):
        for m, (i, rows) in enumerate(segment):
            for n, (j, keys) in enumerate(segment):
                pairs = torch.einsum("ihd,jhd->hij", q[i : i + rows], k[j : j + keys]).clamp(min=0).mean(0) * factor
                if causal:
                    later = torch.arange(j, j + keys) > torch.arange(i, i + rows)[:, None]
                    pairs = pairs.masked_fill(later.to(pairs.device), 0)
                scores[s, m, n] = pairs.max()
    return scores
