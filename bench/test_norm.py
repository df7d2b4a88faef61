"""The row norms on the CPU: ops norm_fwd and norm_bwd through torch and through longspan.kernels."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench.conftest import Session
from bench.layer_parts import HUGGING_FACE, KERNELS, OP, error_law, run_part
from longspan import kernels, ops
from longspan.ops.reference.norm import norm as reference

T = 4096
EPS = 1e-5


class Inputs:
    """A residual stream, what is added to it, and a weight; every route gives y, the sum, dx and dweight."""

    def __init__(self, kind: str, rows: int, C: int, threads: int) -> None:
        self.centered, self.C, self.threads = kind == "layer", C, threads
        self.x, self.residual, self.dy, self.dsum = (torch.randn(rows, C) for _ in range(4))
        self.weight = torch.randn(C)
        self.leaves = [x.requires_grad_() for x in (self.x, self.residual, self.weight)]

    def _with_gradients(self, y: Tensor, total: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        dx, dweight = torch.autograd.grad(
            (y, total), (self.leaves[0], self.leaves[2]), (self.dy.to(dtype), self.dsum.to(dtype))
        )
        return y.detach(), total.detach(), dx, dweight

    def op(self) -> tuple[Tensor, ...]:
        """The torch ops."""
        x, residual, weight = self.leaves
        if self.centered:
            return self._with_gradients(*ops.layer_norm(x, weight, residual=residual, eps=EPS))
        return self._with_gradients(*ops.rms_norm(x, weight, residual=residual, eps=EPS))

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels: norm_fwd and norm_bwd, which know no torch."""
        x, residual, weight = (leaf.detach().numpy() for leaf in self.leaves)
        options = {"centered": self.centered, "threads": self.threads}
        y, total, rstd, mean = kernels.norm_fwd(x, weight, residual=residual, eps=EPS, **options)
        dx, dweight, _ = kernels.norm_bwd(
            self.dy.numpy(), total, rstd, mean, weight, dsum=self.dsum.numpy(), need_dweight=True, **options
        )
        return tuple(torch.from_numpy(a) for a in (y, total, dx, dweight))

    def hugging_face(self) -> tuple[Tensor, ...]:
        """What transformers runs: the residual add, then LlamaRMSNorm's steps or torch's layer norm."""
        x, residual, weight = self.leaves
        total = x + residual
        if self.centered:
            return self._with_gradients(nn.functional.layer_norm(total, (self.C,), weight, None, EPS), total)
        rows = total.to(torch.float32)
        rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + EPS)
        return self._with_gradients(weight * rows.to(total.dtype), total)

    def exact(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The definition in another dtype, of the sum that is stored."""
        total = (self.x + self.residual).detach().to(dtype).requires_grad_()
        weight = self.weight.detach().to(dtype).requires_grad_()
        y, _ = reference(total, weight, centered=self.centered, eps=EPS)
        dx, dweight = torch.autograd.grad(y, (total, weight), self.dy.to(dtype))
        return y.detach(), total.detach(), dx + self.dsum.to(dtype), dweight


@pytest.mark.parametrize("C", [576, 4096])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm(session: Session, benchmark: BenchmarkFixture, kind: str, C: int) -> None:
    """norm_fwd and norm_bwd with a residual, against what transformers runs."""
    small, inputs = (Inputs(kind, rows, C, session.threads) for rows in (64, T))
    checked = error_law((small.op, small.pybind), small.exact(torch.float32), small.exact(torch.float64))
    rows = T * C * 4
    run_part(
        session,
        benchmark,
        f"norm_fwd, norm_bwd|cpu|float32|{kind},T={T},C={C},residual",
        checked,
        {OP: inputs.op, KERNELS: inputs.pybind, HUGGING_FACE: inputs.hugging_face},
        8.0 * rows,  # forward: x, residual, sum, y; backward: dy, sum, dsum, dx
        3 * rows + 8 * C * 64,
    )
