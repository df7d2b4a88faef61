"""Gated activations on the CPU: ops glu_fwd and glu_bwd through torch and through longspan.kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench.conftest import Session
from bench.race import bandwidth, race
from bench.record import Baseline, Gate, Record, Times
from longspan import kernels, ops
from longspan.memory import measure
from longspan.ops.reference.glu import glu as reference

OP, KERNELS, HUGGING_FACE, COPY = "longspan.ops", "longspan.kernels", "hugging_face", "copy"
T, F = 4096, 1536
FACTOR = 3.0  # the error law of gradients: this many times torch's error in the same dtype
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


def gate(activation: str, threads: int) -> Gate:
    """The error law on a few rows: both routes against the reference in float64."""
    inputs = Inputs(activation, 32, threads)
    exact, torchs = inputs.exact(torch.float64), inputs.exact(torch.float32)
    passed, worst, worst_torch = True, 0.0, 0.0
    for route in (inputs.op, inputs.pybind):
        for ours, theirs, true in zip(route(), torchs, exact, strict=True):
            error, allowed = float((ours - true).abs().max()), float((theirs - true).abs().max())
            eps = 2 * torch.finfo(torch.float32).eps * max(1.0, float(true.abs().max()))
            passed &= error <= FACTOR * allowed + eps
            worst, worst_torch = max(worst, error), max(worst_torch, allowed)
    return Gate(passed, worst, worst_torch)


@pytest.mark.parametrize("activation", STOCK)
def test_glu(session: Session, benchmark: BenchmarkFixture, activation: str) -> None:
    """glu_fwd and glu_bwd against what transformers runs."""
    key = f"glu_fwd, glu_bwd|cpu|float32|{activation},T={T},F={F}"
    checked = gate(activation, session.threads)
    if not checked.passed:
        session.write_red(key, OP, "fwd+bwd", checked)
        pytest.fail(f"error law broken, not timed: {checked}")
    inputs = Inputs(activation, T, session.threads)
    copy, copied = bandwidth()
    competitors = {OP: inputs.op, KERNELS: inputs.pybind, HUGGING_FACE: inputs.hugging_face, COPY: copy}
    result = race(benchmark, OP, competitors, session.seconds)
    with measure() as m:
        inputs.op()
    row_bytes = T * F * 4
    for impl in (OP, KERNELS):
        ratio = result.ratio(HUGGING_FACE, impl)
        row = Record(
            key,
            impl,
            "fwd+bwd",
            checked,
            Times.of(result.seconds[impl]),
            None,
            8.0 * row_bytes / copied * result.ratio(COPY, impl),
            {"peak_live_bytes": m.peak_bytes, "predicted_bytes": 3 * row_bytes} if impl == OP else None,
            {HUGGING_FACE: Baseline(result.median(HUGGING_FACE), ratio)},
            {"vs hugging_face >= 1": ratio >= 1.0},
        )
        session.write(row)
        benchmark.extra_info[impl] = row.to_json()
