"""Block scores on the CPU: op block_score through torch and through longspan.kernels."""

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
from longspan.ops.reference.select import block_score as reference

MM, BY_HEADS = "mm", "torch by heads"
H, K, D, BLOCK = 9, 3, 64, 64
T = 4096
REST = 0.25


class Inputs:
    """q and k of one sample; every route gives the scores of all pairs of blocks."""

    def __init__(self, tokens: int, causal: bool, threads: int) -> None:
        self.q, self.k = torch.randn(tokens, H, D), torch.randn(tokens, K, D)
        self.blocks, self.causal, self.threads = ops.TokenBlocks.even(1, tokens, BLOCK), causal, threads

    def op(self) -> tuple[Tensor, ...]:
        """The torch op."""
        return (ops.block_score(self.q, self.k, self.blocks, causal=self.causal),)

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels, which know no torch."""
        b = self.blocks
        numbers = [x.numpy() for x in (b.starts, b.counts, b.segments)]
        q, k = self.q.numpy(), self.k.numpy()
        found = kernels.block_score(q, k, *numbers, b.most, causal=self.causal, threads=self.threads)
        return (torch.from_numpy(found),)

    def by_heads(self) -> tuple[Tensor, ...]:
        """What one writes in torch: the pairs of one head at a time, [T,T]."""
        total = torch.zeros(len(self.q), len(self.q))
        for h in range(H):
            total += (self.q[:, h] @ self.k[:, h * K // H].T).clamp_(min=0)
        if self.causal:
            total.tril_()
        tiles = total.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
        return (tiles.amax((1, 3))[None] * (D**-0.5 / H),)

    def exact(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The definition in another dtype."""
        listed = [list(zip(self.blocks.starts.tolist(), self.blocks.counts.tolist(), strict=True))]
        return (reference(self.q.to(dtype), self.k.to(dtype), listed, causal=self.causal),)


@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_block_score(session: Session, benchmark: BenchmarkFixture, causal: bool) -> None:
    """block_score against the same by torch, whose [T,T] of sums it never has."""
    small, inputs = (Inputs(tokens, causal, session.threads) for tokens in (256, T))
    checked = error_law((small.op, small.pybind), small.exact(torch.float32), small.exact(torch.float64))
    key = f"block_score|cpu|float32|T={T},H={H},K={K},D={D},block={BLOCK},causal={causal}"
    require(session, key, checked)
    products, operations = roofline()
    routes = {OP: inputs.op, KERNELS: inputs.pybind, BY_HEADS: inputs.by_heads, MM: products}
    result = race(benchmark, OP, routes, session.seconds, REST)
    with measure() as m:
        inputs.op()
    flops = 2.0 * H * T * T * D * (0.5 if causal else 1)
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": 4 * (T // BLOCK) ** 2}
    write_routes(session, benchmark, key, checked, result, flops, flops / operations, MM, memory, 1.0, BY_HEADS)
