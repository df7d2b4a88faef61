"""Products of grouped rows on the CPU: ops grouped_expand, grouped_reduce and grouped_weight, through both routes."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.conftest import Session
from bench.layer_parts import KERNELS, OP, error_law, require, write_routes
from bench.race import race, roofline
from longspan import kernels, ops
from longspan.memory import measure

MM, TORCH = "mm", "torch"
BLOCKS, ACTIVE = 4, 2
N, C, F = 4096, 576, 1536
REST = 0.25


class Inputs:
    """Rows in the order of their sets, a weight up and one down."""

    def __init__(self, rows: int, threads: int) -> None:
        act, _ = ops.route_topk(torch.randn(rows, BLOCKS), ACTIVE)
        self.sets, self.threads = ops.route_plan(act, BLOCKS).sets, threads
        width = F // BLOCKS * ACTIVE
        self.x, self.hidden = torch.randn(rows, C), torch.randn(rows, width)
        self.up, self.down = torch.randn(F, C) / C**0.5, torch.randn(C, F) / F**0.5

    def ranges(self) -> list[tuple[slice, tuple[int, ...]]]:
        borders = self.sets.offsets.tolist()
        pairs = zip(borders, borders[1:], self.sets.members(), strict=False)
        return [(slice(a, b), members) for a, b, members in pairs]

    def columns(self, members: tuple[int, ...]) -> Tensor:
        width = F // BLOCKS
        return torch.cat([torch.arange(m * width, (m + 1) * width) for m in members])

    def op(self, name: str) -> tuple[Tensor, ...]:
        if name == "grouped_expand":
            return (ops.grouped_expand(self.x, self.up, self.sets),)
        if name == "grouped_reduce":
            return (ops.grouped_reduce(self.hidden, self.down, self.sets),)
        return (ops.grouped_weight(self.hidden, self.x, self.sets),)

    def pybind(self, name: str) -> tuple[Tensor, ...]:
        one, other = {
            "grouped_expand": (self.x, self.up),
            "grouped_reduce": (self.hidden, self.down),
            "grouped_weight": (self.hidden, self.x),
        }[name]
        entry = getattr(kernels, name)
        spec = self.sets.offsets.numpy(), BLOCKS, ACTIVE
        return (torch.from_numpy(entry(one.numpy(), other.numpy(), *spec, threads=self.threads)),)

    def by_torch(self, name: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """A loop over the sets with gathered weights."""
        x, hidden, up, down = (t.to(dtype) for t in (self.x, self.hidden, self.up, self.down))
        if name == "grouped_weight":
            out = torch.zeros(F, C, dtype=dtype)
            for rows, members in self.ranges():
                out[self.columns(members)] += hidden[rows].mT @ x[rows]
            return (out,)
        if name == "grouped_expand":
            return (torch.cat([x[rows] @ up[self.columns(m)].mT for rows, m in self.ranges()]),)
        return (torch.cat([hidden[rows] @ down[:, self.columns(m)].mT for rows, m in self.ranges()]),)


@pytest.mark.parametrize("op", ["grouped_expand", "grouped_reduce", "grouped_weight"])
def test_grouped(session: Session, benchmark: BenchmarkFixture, op: str) -> None:
    """Each product of a routed feed-forward against torch's products set by set."""
    key = f"{op}|cpu|float32|n={N},C={C},F={F},blocks={BLOCKS},active={ACTIVE}"
    small = Inputs(200, session.threads)
    routes = (lambda: small.op(op)), (lambda: small.pybind(op))
    checked = error_law(routes, small.by_torch(op), small.by_torch(op, torch.float64))
    require(session, key, checked)
    inputs = Inputs(N, session.threads)
    products, operations = roofline()
    ways = {
        OP: lambda: inputs.op(op),
        KERNELS: lambda: inputs.pybind(op),
        TORCH: lambda: inputs.by_torch(op),
        MM: products,
    }
    result = race(benchmark, OP, ways, session.seconds, REST)
    with measure() as m:
        out = ways[OP]()
    flops = 2.0 * N * C * F * ACTIVE / BLOCKS
    size = sum(x.numel() * x.element_size() for x in out)
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": size}
    write_routes(session, benchmark, key, checked, result, flops, flops / operations, MM, memory, 1.0, TORCH)
