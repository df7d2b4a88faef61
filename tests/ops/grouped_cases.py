"""Rows, weights and sets of blocks that the tests of grouped products share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.ops import BlockSets, route_plan


@dataclass(frozen=True)
class Problem:
    """n rows; G blocks of `width`, of which a row meets `active`; the other dimension C; rank of the tail, or 0."""

    n: int = 40
    blocks: int = 4
    active: int = 2
    width: int = 12
    C: int = 20
    rank: int = 3
    bias: bool = True
    by_rows: bool = True
    only: tuple[int, ...] | None = None  # all rows meet these
    seed: int = 0

    def sets(self) -> BlockSets:
        """Of random rows, in order."""
        generator = torch.Generator().manual_seed(self.seed)
        act = torch.rand(self.n, self.blocks, generator=generator).argsort(1)[:, : self.active].sort(1).values
        if self.only is not None:
            act = torch.tensor(self.only).expand(self.n, -1).contiguous()
        return route_plan(act, self.blocks).sets

    def _draw(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def tensors(self, name: str, dtype: torch.dtype) -> dict[str, Any]:
        """What grouped_expand or grouped_reduce takes beside the sets; `x` and `weight` of the dtype."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        total, statistics = self.blocks * self.width, torch.float64 if dtype == torch.float64 else torch.float32
        inner = self.C if name == "grouped_expand" else self.active * self.width
        weight, q = self._draw(generator, total, self.C), self._draw(generator, total, self.rank)
        if name == "grouped_reduce":
            q = self._draw(generator, self.C, self.rank)
        found: dict[str, Any] = {
            "x": self._draw(generator, self.n, inner).to(dtype),
            "weight": (weight if self.by_rows else weight.mT.contiguous()).to(dtype),
        }
        if self.bias:
            size = total if name == "grouped_expand" else self.C
            found["bias"] = self._draw(generator, size).to(dtype)
        if self.rank:
            turned = self.by_rows if name == "grouped_expand" else not self.by_rows
            q = q if turned else q.mT.contiguous()
            found["tail"] = (self._draw(generator, self.n, self.rank).to(statistics), q.to(statistics))
        return found

    def pair(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """a and b of grouped_weight."""
        generator = torch.Generator().manual_seed(self.seed + 2)
        a = self._draw(generator, self.n, self.active * self.width)
        return a.to(dtype), self._draw(generator, self.n, self.C).to(dtype)


CASES = {
    "by rows": Problem(),
    "by columns": Problem(by_rows=False),
    "all blocks": Problem(active=4),
    "one of eight": Problem(blocks=8, active=1),
    "three of five": Problem(blocks=5, active=3, by_rows=False),
    "one block": Problem(blocks=1, active=1),
    "empty blocks": Problem(only=(1, 3)),
    "no tail, no bias": Problem(rank=0, bias=False),
    "no rows": Problem(n=0),
    "one row": Problem(n=1),
    "odd sizes": Problem(n=37, width=7, C=13),
    "wide": Problem(n=150, width=64, C=96, rank=8),
}
