"""Which blocks of a feed-forward layer a row meets: a linear map to one number a block."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from longspan.nn.beside import Beside

SPREAD = 0.1  # of the logits after `fit`: gates of 1 +- 0.05


class Router(Beside):
    """Logits [n,G] of rows [n,C], in float32 or wider: `weight` [G,C], `bias` [G]. A logit of 0 is a gate of 1.

    Source: SPT (arXiv 2312.10365, prototype); the first weights and `fit` are ours.
    """

    def __init__(
        self,
        columns: int,
        blocks: int,
        *,
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(blocks, columns, generator=generator, dtype=torch.float32) * SPREAD / columns**0.5
        self.fitted = False
        self.weight = nn.Parameter(torch.empty(blocks, columns, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(blocks, device=device, dtype=dtype))
        with torch.no_grad():
            self.weight.copy_(first)

    def forward(self, z: Tensor) -> Tensor:
        """z [n,C] -> logits [n,G]."""
        return nn.functional.linear(z.to(self.weight.dtype), self.weight, self.bias)

    @torch.no_grad()
    def fit(self, z: Tensor, norms: Tensor, *, ridge: float = 1e-3) -> None:
        """Makes the logits order the blocks as `norms` [n,G] of their contributions to the rows z [n,C] do.

        Least squares of the norms less their row's mean, with a ridge as a share of the mean square of z.
        """
        x = nn.functional.pad(z.double(), (0, 1), value=1.0)
        aims = norms.double()
        aims = aims - aims.mean(1, keepdim=True)
        square = x.mT @ x
        level = square.diagonal()[:-1].mean() * ridge + torch.finfo(torch.float64).tiny
        square = square + torch.diag(torch.cat([level.expand(z.shape[1]), level.new_zeros(1)]))
        found = torch.linalg.solve(square, x.mT @ aims)
        logits = x @ found
        found = found * (SPREAD / logits.std().clamp(min=1e-12))
        self.weight.copy_(found[:-1].mT)
        self.bias.copy_(found[-1])
        self.fitted = True

    def kept(self) -> dict[str, Tensor]:
        """Weights, and whether `fit` made them."""
        return super().kept() | {"fitted": torch.tensor(self.fitted)}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `kept` gave."""
        self.weight.copy_(tensors["weight"])
        self.bias.copy_(tensors["bias"])
        self.fitted = bool(tensors["fitted"])

    def extra_repr(self) -> str:
        """The shape, which has no module to show it."""
        return f"columns={self.weight.shape[1]}, blocks={self.weight.shape[0]}"
