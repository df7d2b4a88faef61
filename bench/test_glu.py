"""Gated activations on the CPU: ops glu_fwd and glu_bwd through torch and through longspan.kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench.conftest import Session
from bench.layer_parts import HUGGING_FACE, KERNELS, OP, error_law, run_part
from longspan import kernels, ops
from longspan.ops.reference.glu import glu as reference

T, F = 4096, 1536
STOCK: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
}


class Inputs:
    """gate, up and the gradient of y; every route gives y, dgate and dup."""

    def __init__(self, activation: str, rows: int, threads: int) -> None:
        self.activation, self.threads = activation, threads
        self.gate, self.up = (torch.randn(rows, F, requires_grad=True) for _ in range(2))
        self.dy = torch.randn(rows, F)

    def _with_gradients(self, y: Tensor) -> tuple[Tensor, ...]:
        return (y.detach(), *torch.autograd.grad(y, (self.gate, self.up), self.dy))

    def op(self) -> tuple[Tensor, ...]:
        """The torch ops."""
        return self._with_gradients(ops.glu(self.gate, self.up, activation=self.activation))

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels, which know no torch."""
        gate, up = self.gate.detach().numpy(), self.up.detach().numpy()
        y = kernels.glu_fwd(gate, up, self.activation, threads=self.threads)
        gradients = kernels.glu_bwd(self.dy.numpy(), gate, up, self.activation, threads=self.threads)
        return tuple(torch.from_numpy(x) for x in (y, *gradients))

    def hugging_face(self) -> tuple[Tensor, ...]:
        """act_fn(gate) * up, as transformers' MLPs compute it."""
        return self._with_gradients(STOCK[self.activation](self.gate) * self.up)

    def exact(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The definition in another dtype."""
        gate, up = (x.detach().to(dtype).requires_grad_() for x in (self.gate, self.up))
        y = reference(gate, up, self.activation)
        return (y.detach(), *torch.autograd.grad(y, (gate, up), self.dy.to(dtype)))


@pytest.mark.parametrize("activation", STOCK)
def test_glu(session: Session, benchmark: BenchmarkFixture, activation: str) -> None:
    """glu_fwd and glu_bwd against what transformers runs."""
    small, inputs = (Inputs(activation, rows, session.threads) for rows in (32, T))
    checked = error_law((small.op, small.pybind), small.exact(torch.float32), small.exact(torch.float64))
    rows = T * F * 4
    run_part(
        session,
        benchmark,
        f"glu_fwd, glu_bwd|cpu|float32|{activation},T={T},F={F}",
        checked,
        {OP: inputs.op, KERNELS: inputs.pybind, HUGGING_FACE: inputs.hugging_face},
        8.0 * rows,  # forward: gate, up, y; backward: dy, gate, up, dgate, dup
        3 * rows,
    )
