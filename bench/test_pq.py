"""Product quantisation on the CPU: ops pq_encode, pq_loss and pq_stats through torch and through longspan.kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.conftest import Session
from bench.layer_parts import KERNELS, OP, Route, error_law, require, write_routes
from bench.race import race, roofline
from bench.record import Gate
from longspan import kernels, ops
from longspan.memory import measure

MM, TORCH = "mm", "torch"
K, D, M, E = 3, 64, 8, 16
T = 16384
REST = 0.25


class Inputs:
    """Keys and a codebook."""

    def __init__(self, tokens: int, threads: int) -> None:
        self.z = torch.randn(1, tokens, K, D).transpose(1, 2)
        self.book, self.threads = torch.randn(K, M, E, D // M), threads
        self.codes = ops.pq_encode(self.z, self.book)

    def pieces(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """[K M, T, d] and [K M, E, d]."""
        z = self.z[0].unflatten(2, (M, -1)).transpose(1, 2).flatten(0, 1)
        return z.to(dtype), self.book.flatten(0, 1).to(dtype)

    def encode(self) -> tuple[Tensor, ...]:
        return (ops.pq_encode(self.z, self.book),)

    def encode_pybind(self) -> tuple[Tensor, ...]:
        return (torch.from_numpy(kernels.pq_encode(self.z.numpy(), self.book.numpy(), threads=self.threads)),)

    def encode_torch(self) -> tuple[Tensor, ...]:
        """Distances of all pairs, then their minima; not packed."""
        z, book = self.pieces(torch.float32)
        return (torch.cdist(z, book).argmin(2),)

    def loss(self) -> tuple[Tensor, ...]:
        book = self.book.requires_grad_()
        value = ops.pq_loss(self.z, book, self.codes)
        return value.detach(), *torch.autograd.grad(value, book)

    def loss_pybind(self) -> tuple[Tensor, ...]:
        z, book = self.z.numpy(), self.book.detach().numpy()
        value, gradient, _ = kernels.pq_loss(z, book, self.codes.numpy(), threads=self.threads)
        return torch.from_numpy(value)[0], torch.from_numpy(gradient)

    def loss_torch(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """The definition, by torch and its autograd."""
        z, flat = self.pieces(dtype)
        book = flat.detach().requires_grad_()
        distance = (z[:, :, None] - book[:, None]).square().sum(3)
        weights = 1 / distance.clamp(min=1e-5)
        soft = (weights / weights.sum(2, keepdim=True)) @ book
        codes = ops.unpack_codes(self.codes, M, E)[0].transpose(1, 2).flatten(0, 1)
        hard = book.gather(1, codes[..., None].expand(-1, -1, z.shape[2]))
        value = (soft - hard).square().mean() + (z - hard).square().mean()
        (gradient,) = torch.autograd.grad(value, book)
        return value.detach(), gradient.unflatten(0, (K, M))

    def stats(self) -> tuple[Tensor, ...]:
        sums, counts = ops.pq_stats(self.z, self.codes, groups=K, subspaces=M, codewords=E, width=D // M)
        return sums, counts.float()

    def stats_pybind(self) -> tuple[Tensor, ...]:
        sums, counts = kernels.pq_stats(self.z.numpy(), self.codes.numpy(), K, M, E, D // M, threads=self.threads)
        return torch.from_numpy(sums), torch.from_numpy(counts).float()

    def stats_torch(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        z, _ = self.pieces(dtype)
        codes = ops.unpack_codes(self.codes, M, E)[0].transpose(1, 2).flatten(0, 1)
        sums = torch.zeros(K * M, E, z.shape[2], dtype=dtype)
        sums.scatter_add_(1, codes[..., None].expand(-1, -1, z.shape[2]), z)
        counts = torch.zeros(K * M, E, dtype=dtype).scatter_add_(1, codes, torch.ones_like(codes, dtype=dtype))
        return sums.unflatten(0, (K, M)), counts.unflatten(0, (K, M))


Ways = Callable[[Inputs], tuple[Route, Route, Route]]


def _row(
    session: Session,
    benchmark: BenchmarkFixture,
    op: str,
    checked: Gate,
    ways: Ways,
    flops: float,
    predicted: int,
) -> None:
    key = f"{op}|cpu|float32|T={T},K={K},D={D},M={M},E={E}"
    require(session, key, checked)
    ours, pybind, torchs = ways(Inputs(T, session.threads))
    products, operations = roofline()
    result = race(benchmark, OP, {OP: ours, KERNELS: pybind, TORCH: torchs, MM: products}, session.seconds, REST)
    with measure() as m:
        ours()
    memory = {"peak_live_bytes": m.peak_bytes, "predicted_bytes": predicted}
    write_routes(session, benchmark, key, checked, result, flops, flops / operations, MM, memory, 1.0, TORCH)


def test_pq_encode(session: Session, benchmark: BenchmarkFixture) -> None:
    """pq_encode: no distance reaches memory."""
    small = Inputs(512, session.threads)
    given = [
        ops.unpack_codes(route()[0], M, E)[0].transpose(1, 2).flatten(0, 1)
        for route in (small.encode, small.encode_pybind)
    ]
    z, book = small.pieces(torch.float64)
    exact = torch.cdist(z, book).argmin(2)
    checked = Gate(all(torch.equal(one, exact) for one in given), 0.0, 0.0)
    flops = 3.0 * K * T * D * E
    _row(
        session,
        benchmark,
        "pq_encode",
        checked,
        lambda i: (i.encode, i.encode_pybind, i.encode_torch),
        flops,
        4 * K * T,
    )


def test_pq_loss(session: Session, benchmark: BenchmarkFixture) -> None:
    """pq_loss with its gradient, which the forward makes."""
    small = Inputs(512, session.threads)
    checked = error_law((small.loss, small.loss_pybind), small.loss_torch(), small.loss_torch(torch.float64))
    flops = 10.0 * K * T * D * E
    _row(session, benchmark, "pq_loss", checked, lambda i: (i.loss, i.loss_pybind, i.loss_torch), flops, 8 * K * D * E)


def test_pq_stats(session: Session, benchmark: BenchmarkFixture) -> None:
    """pq_stats, the sums of a step of k-means."""
    small = Inputs(512, session.threads)
    checked = error_law((small.stats, small.stats_pybind), small.stats_torch(), small.stats_torch(torch.float64))
    flops, size = 1.0 * K * T * D, 4 * K * (D * E + M * E)
    _row(session, benchmark, "pq_stats", checked, lambda i: (i.stats, i.stats_pybind, i.stats_torch), flops, size)


@pytest.mark.parametrize("power", [1])
def test_distance_of_the_paper(session: Session, benchmark: BenchmarkFixture, power: int) -> None:
    """pq_encode with SPT's distance, the sum of absolute differences."""
    inputs = Inputs(T, session.threads)
    z, book = inputs.pieces(torch.float64)
    exact = torch.cdist(z[:, :512], book, p=1).argmin(2)
    found = ops.unpack_codes(ops.pq_encode(inputs.z, inputs.book, power=power), M, E)[0]
    checked = Gate(torch.equal(found[:, :512].transpose(1, 2).flatten(0, 1), exact), 0.0, 0.0)
    key = f"pq_encode|cpu|float32|T={T},K={K},D={D},M={M},E={E},power={power}"
    require(session, key, checked)
    products, operations = roofline()
    numpy = inputs.z.numpy(), inputs.book.numpy()
    routes: dict[str, Callable[[], object]] = {
        OP: lambda: ops.pq_encode(inputs.z, inputs.book, power=power),
        KERNELS: lambda: kernels.pq_encode(*numpy, power=power, threads=session.threads),
        TORCH: lambda: torch.cdist(*inputs.pieces(torch.float32), p=1).argmin(2),
        MM: products,
    }
    result = race(benchmark, OP, routes, session.seconds, REST)
    flops = 3.0 * K * T * D * E
    memory = {"peak_live_bytes": 4 * K * T, "predicted_bytes": 4 * K * T}
    write_routes(session, benchmark, key, checked, result, flops, flops / operations, MM, memory, 1.0, TORCH)
