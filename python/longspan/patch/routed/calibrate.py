"""How much each block of a feed-forward layer gives to each row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from longspan import ops

SAMPLE = 4096  # rows


def some_rows(rows: Tensor) -> Tensor:
    """At most SAMPLE of the rows [M,C], evenly apart."""
    return rows[:: max(1, -(-rows.shape[0] // SAMPLE))]


@torch.no_grad()
def contribution_norms(
    z: Tensor, up: Sequence[ops.Projection], down: ops.Projection, activation: str, blocks: int
) -> Tensor:
    """The Euclidean norm of what each block of hidden units adds for rows z [n,C]: [n,blocks]. Adapters count nothing.

    Raises ValueError unless the hidden units divide into the blocks.
    """
    units = down.weight.shape[1]
    if units % blocks:
        raise ValueError(f"{units} hidden units do not divide into {blocks} blocks")
    wide = [torch.nn.functional.linear(z, p.weight, p.bias) for p in up]
    hidden = ops.glu(*wide, activation=activation) if len(wide) == 2 else ops.activation(wide[0], activation)
    pairs = zip(hidden.chunk(blocks, 1), down.weight.chunk(blocks, 1), strict=True)
    return torch.stack([torch.linalg.vector_norm((h @ w.mT).double(), dim=1) for h, w in pairs], 1)
