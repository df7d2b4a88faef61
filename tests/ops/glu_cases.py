"""Activation problems that the op tests and the CUDA tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops.reference.glu import glu as reference

F64 = torch.float64


@dataclass(frozen=True)
class Problem:
    """gate and, when `gated`, up, both [T,F]."""

    T: int = 9
    F: int = 64
    activation: str = "silu"
    gated: bool = True

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """gate, whose values reach into both tails, and up."""
        g = torch.Generator().manual_seed(self.F)
        gate = 4 * torch.randn(self.T, self.F, generator=g, dtype=F64)
        if gate.numel() > 4:
            gate.view(-1)[:4] = torch.tensor([0.0, 60.0, -60.0, -9.0])
        return [x.to(dtype) for x in (gate, torch.randn(self.T, self.F, generator=g, dtype=F64))[: 1 + self.gated]]

    def upstream(self, dtype: torch.dtype) -> Tensor:
        """The gradient of y."""
        g = torch.Generator().manual_seed(5)
        return torch.randn(self.T, self.F, generator=g, dtype=F64).to(dtype)

    def oracle(self, dtype: torch.dtype, given: torch.dtype) -> dict[str, Tensor]:
        """y and the gradients, by the definition in `dtype`, of inputs in `given`."""
        leaves = [x.to(dtype).requires_grad_() for x in self.tensors(given)]
        y = reference(leaves[0], leaves[1] if self.gated else None, self.activation)
        y.backward(self.upstream(given).to(dtype))
        names = ("dgate", "dup")
        return {"y": y.detach()} | {n: x.grad for n, x in zip(names, leaves, strict=False) if x.grad is not None}


ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
CASES = {
    f"{name}{'' if gated else ' alone'}": Problem(activation=name, gated=gated)
    for name in ACTIVATIONS
    for gated in (True, False)
} | {
    "odd columns": Problem(7, 77),
    "one column": Problem(5, 1, "gelu"),
    "no rows": Problem(0, 8),
    "one token": Problem(1, 130, "gelu_tanh"),
    "wide": Problem(2, 3001, "relu2"),
}
