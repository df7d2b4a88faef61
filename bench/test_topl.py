"""Choosing keys on the CPU: ops topl_threshold, topl_indices and adc_table, through torch and longspan.kernels."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.conftest import Session
from bench.layer_parts import KERNELS, OP, require, write_routes
from bench.race import race, roofline
from bench.record import Gate
from longspan import kernels, ops
from longspan.memory import measure
from longspan.ops.reference import topl as reference

MM, TORCH = "mm", "torch"
H, K, D, M, E = 9, 3, 64, 8, 16
T = 4096
BUDGET, WINDOW, SINKS = T // 8, T // 32, 4
REST = 0.25


class Inputs:
    """Queries, keys, a codebook and the keys' codes."""

    def __init__(self, tokens: int, threads: int) -> None:
        self.q, self.k = (torch.randn(1, tokens, heads, D).transpose(1, 2) for heads in (H, K))
        self.book, self.threads = torch.randn(K, M, E, D // M), threads
        self.codes = ops.pq_encode(self.k, self.book)
        self.budget = max(1, BUDGET * tokens // T)
        self.near = {"window": WINDOW * tokens // T, "sinks": SINKS}

    def threshold(self) -> ops.KeySelection:
        return ops.topl_threshold(self.codes, self.budget, q=self.q, codebook=self.book, **self.near)

    def threshold_pybind(self) -> tuple[Tensor, ...]:
        arrays = {"q": self.q.numpy(), "codebook": self.book.numpy(), "threads": self.threads}
        found = kernels.topl_threshold(self.codes.numpy(), self.budget, **arrays, **self.near)
        return tuple(torch.from_numpy(x) for x in found)

    def lists(self, chosen: ops.KeySelection) -> Tensor:
        return ops.topl_indices(chosen, self.budget, q=self.q)

    def lists_pybind(self, chosen: ops.KeySelection) -> Tensor:
        arrays = {"q": self.q.numpy(), "codebook": self.book.numpy(), "threads": self.threads}
        args = self.codes.numpy(), chosen.threshold.numpy(), chosen.cut.numpy(), self.budget
        return torch.from_numpy(kernels.topl_indices(*args, **arrays, **self.near))

    def by_torch(self) -> Tensor:
        """Scores of all pairs from decoded keys, a head at a time, and torch's topk."""
        decoded, found = ops.pq_decode(self.codes, self.book), []
        hidden = torch.ones(self.q.shape[2], self.q.shape[2], dtype=torch.bool).triu(1)
        for head in range(H):
            scores = (self.q[0, head] @ decoded[0, head * K // H].mT).masked_fill(hidden, -torch.inf)
            found.append(scores.topk(self.budget, 1, sorted=False).indices)
        return torch.stack(found)


def _checked(session: Session) -> Gate:
    """Thresholds and lists of both routes, bit for bit those of the definition."""
    small = Inputs(256, session.threads)
    chosen, other = small.threshold(), small.threshold_pybind()
    row, column = torch.arange(256)[:, None], torch.arange(256)
    reach = (column <= row).expand(1, H, -1, -1)
    near = ((row - column < small.near["window"]) | (column < small.near["sinks"])).expand(1, H, -1, -1)
    kept = reference.topl_threshold(reference.scores(chosen, small.q), reach, near, small.budget)
    equal = all(torch.equal(a, b) for a, b in zip((chosen.threshold, chosen.cut, chosen.kept), other, strict=True))
    equal &= torch.equal(small.lists(chosen), reference.topl_indices(kept, small.budget))
    equal &= torch.equal(small.lists(chosen), small.lists_pybind(chosen))
    return Gate(bool(equal), 0.0, 0.0)


@pytest.mark.parametrize("op", ["topl_threshold", "topl_indices"])
def test_topl(session: Session, benchmark: BenchmarkFixture, op: str) -> None:
    """topl_threshold and topl_indices against all scores and torch.topk; work: a look-up a subspace and pair, twice."""
    key = f"{op}|cpu|float32|T={T},H={H},K={K},D={D},M={M},E={E},budget={BUDGET},window={WINDOW},sinks={SINKS}"
    checked = _checked(session)
    require(session, key, checked)
    inputs = Inputs(T, session.threads)
    chosen = inputs.threshold()
    products, operations = roofline()
    ours, pybind = {
        "topl_threshold": (inputs.threshold, inputs.threshold_pybind),
        "topl_indices": (lambda: inputs.lists(chosen), lambda: inputs.lists_pybind(chosen)),
    }[op]
    result = race(
        benchmark, OP, {OP: ours, KERNELS: pybind, TORCH: inputs.by_torch, MM: products}, session.seconds, REST
    )
    with measure() as m:
        ours()
    looked_up = (2.0 if op == "topl_threshold" else 1.0) * H * T * (T + 1) / 2 * M
    size = 10 * H * T if op == "topl_threshold" else 4 * H * T * BUDGET
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": size}
    write_routes(session, benchmark, key, checked, result, looked_up, looked_up / operations, MM, memory, 1.0, TORCH)


def test_adc_table(session: Session, benchmark: BenchmarkFixture) -> None:
    """adc_table against products with all codewords and their quantisation by torch."""
    key = f"adc_table|cpu|float32|T={T},H={H},K={K},D={D},M={M},E={E}"
    small = Inputs(256, session.threads)
    found = torch.from_numpy(kernels.adc_table(small.q.numpy(), small.book.numpy(), threads=session.threads))
    wanted = reference.adc_table(small.q, small.book)
    checked = Gate(torch.equal(ops.adc_table(small.q, small.book), wanted) and torch.equal(found, wanted), 0.0, 0.0)
    require(session, key, checked)
    inputs = Inputs(T, session.threads)

    def by_torch() -> Tensor:
        q = inputs.q[0].unflatten(0, (K, -1)).unflatten(3, (M, -1))
        values = torch.einsum("kgtmd,kmed->kgtme", q, inputs.book)
        values = values - values.amin(4, keepdim=True)
        return (values * (255 / values.amax((3, 4), keepdim=True)) + 0.5).to(torch.uint8)

    products, operations = roofline()
    routes = {
        OP: lambda: ops.adc_table(inputs.q, inputs.book),
        KERNELS: lambda: kernels.adc_table(inputs.q.numpy(), inputs.book.numpy(), threads=session.threads),
        TORCH: by_torch,
        MM: products,
    }
    result = race(benchmark, OP, routes, session.seconds, REST)
    with measure() as m:
        routes[OP]()
    flops = 2.0 * H * T * D * E
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": H * T * M * 16}
    write_routes(session, benchmark, key, checked, result, flops, flops / operations, MM, memory, 1.0, TORCH)
