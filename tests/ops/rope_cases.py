"""Rotary problems that the op tests and the CUDA tests share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops import rope_table
from longspan.ops.reference.rope import rope as reference

LENGTH = 5000


@dataclass(frozen=True)
class Problem:
    """x [B,H,T,D] of which the first `rotated` columns turn; `batched`: positions for each row of the batch."""

    shape: tuple[int, int, int, int] = (2, 3, 37, 64)
    rotated: int | None = None
    interleaved: bool = False
    batched: bool = False
    scaling: float = 1.0

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x with [B,T,H,D] storage, cos, sin, positions."""
        B, H, T, D = self.shape
        g = torch.Generator().manual_seed(D)
        x = torch.randn(B, T, H, D, generator=g, dtype=torch.float64).to(dtype).transpose(1, 2)
        pairs = (D if self.rotated is None else self.rotated) // 2
        cos, sin = rope_table(10000.0 ** -(torch.arange(pairs) / max(pairs, 1)), LENGTH, scaling=self.scaling)
        if dtype == torch.float64:
            cos, sin = cos.double(), sin.double()
        positions = torch.randint(LENGTH, (B if self.batched else 1, T), generator=g)
        return x, cos, sin, positions

    def upstream(self, dtype: torch.dtype) -> Tensor:
        """The gradient of the result."""
        g = torch.Generator().manual_seed(11)
        return torch.randn(self.shape, generator=g, dtype=torch.float64).to(dtype)

    def oracle(self, dtype: torch.dtype, given: torch.dtype) -> tuple[Tensor, Tensor]:
        """The result and the gradient of x, by the definition in `dtype`, of inputs in `given`."""
        x, cos, sin, positions = self.tensors(given)
        x = x.to(dtype).requires_grad_()
        y = reference(x, cos, sin, positions, interleaved=self.interleaved)
        y.backward(self.upstream(given).to(dtype))
        assert x.grad is not None
        return y.detach(), x.grad


CASES = {
    "halves": Problem(),
    "interleaved": Problem(interleaved=True),
    "partial": Problem((1, 2, 20, 80), rotated=32),
    "partial interleaved": Problem((1, 2, 20, 80), rotated=20, interleaved=True),
    "positions by row": Problem((3, 2, 9, 16), batched=True),
    "odd head": Problem((1, 3, 11, 21), rotated=14),
    "one pair": Problem((1, 1, 4, 2)),
    "no pair": Problem((1, 2, 4, 6), rotated=0),
    "no tokens": Problem((1, 2, 0, 16)),
    "one token": Problem((1, 4, 1, 128)),
    "scaled": Problem((1, 2, 8, 32), scaling=1.25),
    "many heads": Problem((1, 9, 70, 64)),
}
