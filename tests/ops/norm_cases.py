"""Row-norm problems that the op tests and the CUDA tests share, and their oracle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops.reference.norm import norm as reference

F32, F64 = torch.float32, torch.float64


@dataclass(frozen=True)
class Problem:
    """Rows x [T,C]; `kind` is "rms" or "layer"."""

    T: int = 9
    C: int = 64
    kind: str = "rms"
    weight: bool = True
    bias: bool = False
    residual: bool = False
    wide_weight: bool = False  # float32 beside 16-bit rows
    weight_offset: float = 0.0
    eps: float = 1e-5
    level: float = 0.0  # added to every element: a mean far from zero

    @property
    def centered(self) -> bool:
        return self.kind == "layer"

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """x, and the residual, weight and bias that the problem has."""
        g = torch.Generator().manual_seed(self.T * 1000 + self.C)

        def draw(*shape: int, to: torch.dtype = dtype) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=F64).to(to)

        vector_dtype = F32 if self.wide_weight and dtype != F64 else dtype
        found = {"x": (draw(self.T, self.C, to=F64) + self.level).to(dtype)}
        if self.residual:
            found["residual"] = draw(self.T, self.C)
        if self.weight:
            found["weight"] = draw(self.C, to=vector_dtype)
        if self.bias:
            found["bias"] = draw(self.C, to=vector_dtype)
        return found

    def upstream(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The gradients of y and of x + residual."""
        g = torch.Generator().manual_seed(7)
        dy, dsum = (torch.randn(self.T, self.C, generator=g, dtype=F64).to(dtype) for _ in range(2))
        return dy, dsum

    def oracle(self, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
        """y, sum and gradients with the definition computed in `dtype`. The sum is what the op stored, rounded."""
        leaves = {name: x.detach().to(dtype).requires_grad_() for name, x in tensors.items()}
        given = tensors["x"].dtype
        summed = leaves["x"]
        if self.residual:
            exact = tensors["x"].to(F64) + tensors["residual"].to(F64)
            summed = exact.to(given).to(dtype).requires_grad_()
        y, _ = reference(
            summed,
            leaves.get("weight"),
            leaves.get("bias"),
            centered=self.centered,
            eps=self.eps,
            weight_offset=self.weight_offset,
        )
        dy, dsum = self.upstream(given)
        torch.autograd.backward(y, dy.to(y.dtype))
        assert summed.grad is not None
        values = {"y": y.detach(), "dx": summed.grad + (dsum.to(dtype) if self.residual else 0)}
        if self.residual:
            values["sum"] = summed.detach()
        for name in ("weight", "bias"):
            if name in leaves:
                grad = leaves[name].grad
                assert grad is not None
                values[f"d{name}"] = grad
        return values


CASES = {
    "rms": Problem(),
    "layer": Problem(kind="layer", bias=True),
    "rms residual": Problem(residual=True, C=96),
    "layer residual": Problem(kind="layer", bias=True, residual=True, T=33, C=40),
    "no rows": Problem(T=0, kind="layer", bias=True, residual=True),
    "one token": Problem(T=1),
    "one column": Problem(T=5, C=1),
    "odd columns": Problem(T=21, C=77, kind="layer", bias=True, residual=True),
    "no weight": Problem(weight=False, kind="layer"),
    "bias alone": Problem(weight=False, bias=True, kind="layer"),
    "float32 weight": Problem(wide_weight=True, C=80),
    "offset": Problem(weight_offset=1.0, residual=True),
    "far mean": Problem(kind="layer", level=30.0, C=200),
    "large eps": Problem(eps=0.5),
    "wide": Problem(T=3, C=4099, residual=True),
    "many rows": Problem(T=150, C=24, kind="layer", bias=True),
}
