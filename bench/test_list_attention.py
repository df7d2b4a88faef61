"""Attention over lists on the CPU: ops list_attention_fwd, list_attention_bwd and list_transpose."""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.attention import sdpa
from bench.conftest import Session
from bench.layer_parts import KERNELS, OP, error_law, require, write_routes
from bench.race import race, roofline
from bench.record import Gate
from longspan import kernels, ops
from longspan.memory import measure

MM, DENSE, TORCH = "mm", "sdpa_dense", "torch"
H, K, D = 9, 3, 64
T = 4096
REST = 0.25


def some_lists(tokens: int, slots: int) -> Tensor:
    """Increasing lists of earlier keys, the last among them."""
    rank = torch.rand(1, H, tokens, tokens).masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -1)
    rank.diagonal(dim1=2, dim2=3).fill_(2)
    best = rank.topk(slots, 3)
    place = torch.where(best.values >= 0, best.indices, tokens).sort(3).values
    return torch.where(place < tokens, place, -1).int()


class Inputs:
    """q, k, v, the gradient of out, and lists."""

    def __init__(self, tokens: int, slots: int, threads: int) -> None:
        self.q, self.k, self.v, self.dout = (
            torch.randn(1, tokens, heads, D).transpose(1, 2).requires_grad_() for heads in (H, K, K, H)
        )
        self.dout = self.dout.detach()
        self.lists, self.threads = some_lists(tokens, slots), threads

    def op(self) -> tuple[Tensor, ...]:
        """Forward and backward."""
        out = ops.list_attention(self.q, self.k, self.v, self.lists)
        assert isinstance(out, Tensor)
        return out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.dout)

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels."""
        arrays = [x.detach().numpy() for x in (self.q, self.k, self.v)]
        lists = self.lists.numpy()
        out, lse = kernels.list_attention_fwd(*arrays, lists, threads=self.threads)
        starts, rows = kernels.list_transpose(lists, self.k.shape[2], threads=self.threads)
        dout = self.dout.numpy()
        gradients = kernels.list_attention_bwd(dout, *arrays, out, lse, lists, starts, rows, threads=self.threads)
        return tuple(torch.from_numpy(x) for x in (out, *gradients))

    def dense(self) -> tuple[Tensor, ...]:
        """torch's dense causal attention, which reads all keys."""
        out = sdpa(self.q, self.k, self.v)
        return out.detach(), *torch.autograd.grad(out, (self.q, self.k, self.v), self.dout)

    def by_mask(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The definition with a mask."""
        q, k, v = (x.detach().to(dtype).requires_grad_() for x in (self.q, self.k, self.v))
        keys = k.shape[2]
        kept = torch.zeros(*self.lists.shape[:3], keys + 1, dtype=torch.bool)
        kept.scatter_(3, torch.where(self.lists < 0, keys, self.lists).long(), True)
        scores = q @ k.repeat_interleave(H // K, 1).mT * D**-0.5
        out = scores.masked_fill(~kept[..., :keys], -torch.inf).softmax(3) @ v.repeat_interleave(H // K, 1)
        return out.detach(), *torch.autograd.grad(out, (q, k, v), self.dout.to(dtype))


@pytest.mark.parametrize("slots", [64, 256])
def test_list_attention(session: Session, benchmark: BenchmarkFixture, slots: int) -> None:
    """list_attention_fwd and list_attention_bwd of short lists against dense attention of the same length."""
    key = f"list_attention_fwd+list_attention_bwd|cpu|float32|B=1,T={T},H={H},K={K},D={D},slots={slots}"
    small = Inputs(320, 24, session.threads)
    checked = error_law((small.op, small.pybind), small.by_mask(torch.float32), small.by_mask(torch.float64))
    require(session, key, checked)
    inputs = Inputs(T, slots, session.threads)
    products, operations = roofline()
    routes = {OP: inputs.op, KERNELS: inputs.pybind, DENSE: inputs.dense, MM: products}
    result = race(benchmark, OP, routes, session.seconds, REST)
    with measure() as m:
        inputs.op()
    pairs = int((inputs.lists >= 0).sum())
    flops = 14.0 * D * pairs
    size = 4 * T * (D * (2 * H + 2 * K) + H) + 4 * H * (T * slots + T + 1)
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": size}
    write_routes(session, benchmark, key, checked, result, flops, flops / operations, MM, memory, 1.0, DENSE)


def test_list_transpose(session: Session, benchmark: BenchmarkFixture) -> None:
    """list_transpose against torch's sort of all pairs by key."""
    slots = 256
    key = f"list_transpose|cpu|int32|T={T},H={H},slots={slots}"
    lists = some_lists(T, slots)

    def by_torch() -> Tensor:
        flat = torch.where(lists < 0, T, lists).flatten(2)
        return torch.sort(flat, dim=2, stable=True).indices // slots

    starts, rows = ops.list_transpose(lists, T)
    count = int(starts[0, 0, -1])
    checked = Gate(torch.equal(rows[0, 0, :count], by_torch()[0, 0, :count].int()), 0.0, 0.0)
    require(session, key, checked)
    products, operations = roofline()
    routes = {
        OP: lambda: ops.list_transpose(lists, T),
        KERNELS: lambda: kernels.list_transpose(lists.numpy(), T, threads=session.threads),
        TORCH: by_torch,
        MM: products,
    }
    result = race(benchmark, OP, routes, session.seconds, REST)
    with measure() as m:
        routes[OP]()
    moved = float(2 * H * T * slots)
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": 4 * H * (T * slots + T + 1)}
    write_routes(session, benchmark, key, checked, result, moved, moved / operations, MM, memory, 1.0, TORCH)
