"""The row norms on the CPU: ops norm_fwd and norm_bwd through torch and through longspan.kernels."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench.conftest import Session
from bench.race import bandwidth, race
from bench.record import Baseline, Gate, Record, Times
from longspan import kernels, ops
from longspan.memory import measure
from longspan.ops.reference.norm import norm as reference

OP, KERNELS, HUGGING_FACE, COPY = "longspan.ops", "longspan.kernels", "hugging_face", "copy"
T = 4096
EPS = 1e-5
FACTOR = 3.0  # the error law of gradients: this many times torch's error in the same dtype


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


def gate(kind: str, C: int, threads: int) -> Gate:
    """The error law on a few rows: both routes against the reference in float64."""
    inputs = Inputs(kind, 64, C, threads)
    exact, torchs = inputs.exact(torch.float64), inputs.exact(torch.float32)
    passed, worst, worst_torch = True, 0.0, 0.0
    for route in (inputs.op, inputs.pybind):
        for ours, theirs, true in zip(route(), torchs, exact, strict=True):
            error, allowed = float((ours - true).abs().max()), float((theirs - true).abs().max())
            eps = 2 * torch.finfo(torch.float32).eps * max(1.0, float(true.abs().max()))
            passed &= error <= FACTOR * allowed + eps
            worst, worst_torch = max(worst, error), max(worst_torch, allowed)
    return Gate(passed, worst, worst_torch)


@pytest.mark.parametrize("C", [576, 4096])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norm(session: Session, benchmark: BenchmarkFixture, kind: str, C: int) -> None:
    """norm_fwd and norm_bwd with a residual, against what transformers runs."""
    key = f"norm_fwd, norm_bwd|cpu|float32|{kind},T={T},C={C},residual"
    checked = gate(kind, C, session.threads)
    if not checked.passed:
        session.write_red(key, OP, "fwd+bwd", checked)
        pytest.fail(f"error law broken, not timed: {checked}")
    inputs = Inputs(kind, T, C, session.threads)
    copy, copied = bandwidth()
    competitors = {OP: inputs.op, KERNELS: inputs.pybind, HUGGING_FACE: inputs.hugging_face, COPY: copy}
    result = race(benchmark, OP, competitors, session.seconds)
    with measure() as m:
        inputs.op()
    moved = 8.0 * T * C * 4  # forward: x, residual, sum, y; backward: dy, sum, dsum, dx
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": 3 * T * C * 4 + 8 * C * 64}
    for impl in (OP, KERNELS):
        ratio = result.ratio(HUGGING_FACE, impl)
        row = Record(
            key,
            impl,
            "fwd+bwd",
            checked,
            Times.of(result.seconds[impl]),
            None,
            moved / copied * result.ratio(COPY, impl),
            memory if impl == OP else None,
            {HUGGING_FACE: Baseline(result.median(HUGGING_FACE), ratio)},
            {"vs hugging_face >= 1": ratio >= 1.0},
        )
        session.write(row)
        benchmark.extra_info[impl] = row.to_json()
