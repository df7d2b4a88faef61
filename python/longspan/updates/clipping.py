"""Factors that bound the norm of gradients: of all together, or of each component by itself.

Component-wise gradient norm clipping: Yang and Ma 2022, arXiv 2210.10325.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.registry import choose
from longspan.updates.layers import layer_of

COMPONENTS = ("all", "tensor", "module", "layer")
EPS = 1e-6  # of torch.nn.utils.clip_grad_norm_ and of the published code


@dataclass(frozen=True)
class GradientClip:
    """Multiplies the gradient of a component by min(1, max_norm / (norm + 1e-6)).

    component: what has one norm: "all" parameters, each "tensor" (as published), each "module" (weight and bias), or
    each decoder "layer". by_size: the bound of a component of n elements is max_norm sqrt(n), so that small tensors are
    not bound more loosely than large ones.
    """

    max_norm: float
    component: str = "all"
    by_size: bool = False

    def __post_init__(self) -> None:
        if not self.max_norm > 0:
            raise ValueError(f"max_norm is {self.max_norm}; it must be above 0")
        choose("component", self.component, COMPONENTS)

    def factors(self, names: Sequence[str], sizes: Sequence[int], squares: Tensor) -> Tensor:
        """float32 [n], of squares float64 [n]: the sums of squares of n gradients."""
        keys: dict[str, int] = {}
        index = [keys.setdefault(self._key(name), len(keys)) for name in names]
        where = torch.tensor(index, device=squares.device)
        norms = squares.new_zeros(len(keys)).index_add_(0, where, squares).sqrt_()
        bounds = torch.full_like(norms, self.max_norm)
        if self.by_size:
            counts = torch.tensor(sizes, dtype=norms.dtype, device=norms.device)
            bounds *= torch.zeros_like(norms).index_add_(0, where, counts).sqrt_()
        return (bounds / (norms + EPS)).clamp_(max=1.0)[where].float()

    def _key(self, name: str) -> str:
        if self.component == "all":
            return ""
        if self.component == "tensor":
            return name
        module = name.rpartition(".")[0] or name
        layer = layer_of(name)
        return module if self.component == "module" or layer is None else f"layer {layer}"
