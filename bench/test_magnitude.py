"""Magnitudes on the CPU: ops kth_magnitude, magnitude_histogram and squared_norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.conftest import Session
from bench.layer_parts import KERNELS, OP, error_law, run_part
from longspan import kernels, ops
from longspan.ops.reference.magnitude import magnitude_histogram

TORCH = "torch"
SIZES = {"layers": [1 << 16, *[576 * 1536] * 28], "one": [1 << 24]}  # as a small model has them; one large tensor
KEEP = 0.2


class Inputs:
    """Gradients whose magnitudes spread over many powers of two, one group."""

    def __init__(self, sizes: list[int], dtype: torch.dtype, threads: int) -> None:
        self.tensors = [(torch.randn(n) * torch.randn(n).exp() * 1e-4).to(dtype) for n in sizes]
        self.groups, self.threads = [0] * len(sizes), threads
        self.wanted = max(1, int(KEEP * sum(sizes)))

    def arrays(self) -> list[Any]:
        """For longspan.kernels; NumPy has no bfloat16."""
        return [x.numpy() if x.dtype == torch.float32 else x for x in self.tensors]

    def kth(self) -> tuple[Tensor, ...]:
        """The torch op."""
        return (ops.kth_magnitude(self.tensors, [self.wanted], groups=self.groups).values.double(),)

    def kth_kernel(self) -> tuple[Tensor, ...]:
        """longspan.kernels: kth_magnitude, which knows no torch."""
        wanted = torch.tensor([self.wanted]).numpy()
        bits, *_ = kernels.kth_magnitude(self.arrays(), self.groups, wanted, exact=True, threads=self.threads)
        return (torch.from_numpy(bits).view(torch.float32).double(),)

    def kth_torch(self) -> tuple[Tensor, ...]:
        """What masks are found with in torch: one long vector of magnitudes, and its kthvalue."""
        flat = torch.cat([x.flatten().abs() for x in self.tensors])
        return (flat.kthvalue(len(flat) - self.wanted + 1).values.double().view(1),)

    def histogram(self) -> tuple[Tensor, ...]:
        """The torch op."""
        return (ops.magnitude_histogram(self.tensors, groups=self.groups)[0].double(),)

    def histogram_kernel(self) -> tuple[Tensor, ...]:
        """longspan.kernels: magnitude_histogram."""
        counts, _ = kernels.magnitude_histogram(self.arrays(), self.groups, 1, threads=self.threads)
        return (torch.from_numpy(counts).double(),)

    def histogram_torch(self) -> tuple[Tensor, ...]:
        """Keys by bits, and torch.bincount."""
        return (magnitude_histogram(self.tensors)[None].double(),)

    def squares(self) -> tuple[Tensor, ...]:
        """The torch op."""
        return (ops.squared_norms(self.tensors, groups=self.groups),)

    def squares_kernel(self) -> tuple[Tensor, ...]:
        """longspan.kernels: squared_norms."""
        return (torch.from_numpy(kernels.squared_norms(self.arrays(), self.groups, 1, threads=self.threads)),)

    def squares_torch(self) -> tuple[Tensor, ...]:
        """What torch's clip_grad_norm_ takes the norm of gradients with."""
        return (torch.stack(torch._foreach_norm(self.tensors, 2, torch.float32)).double().square().sum()[None],)

    def squares_exact(self) -> tuple[Tensor, ...]:
        """In float64."""
        return (torch.stack([x.double().square().sum() for x in self.tensors]).sum()[None],)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", SIZES)
@pytest.mark.parametrize("op", ["kth_magnitude", "magnitude_histogram", "squared_norms"])
def test_magnitude(session: Session, benchmark: BenchmarkFixture, op: str, case: str, dtype: torch.dtype) -> None:
    """Against torch.kthvalue, bincount and _foreach_norm; a copy is the roofline of one read (float32 k-th: two)."""
    small, inputs = Inputs([1000, 3000], dtype, session.threads), Inputs(SIZES[case], dtype, session.threads)
    kth, counting = op == "kth_magnitude", op == "magnitude_histogram"

    def routes_of(x: Inputs) -> tuple[Any, Any, Any]:
        if kth:
            return x.kth, x.kth_kernel, x.kth_torch
        if counting:
            return x.histogram, x.histogram_kernel, x.histogram_torch
        return x.squares, x.squares_kernel, x.squares_torch

    ours, kernel, theirs = routes_of(small)
    checked = error_law((ours, kernel), theirs(), theirs() if kth or counting else small.squares_exact())
    size = sum(SIZES[case])
    name = str(dtype).removeprefix("torch.")
    key = f"{op}|cpu|{name}|n={size},{case}"
    routes = dict(zip((OP, KERNELS, TORCH), routes_of(inputs), strict=True))
    reads = (2 if kth and dtype == torch.float32 else 1) * size * dtype.itemsize
    counts = 8 << 15 if counting else 0
    result = run_part(session, benchmark, key, checked, routes, reads, counts, TORCH, 3.0 if kth or counting else 1.0)
    benchmark.extra_info["ns an element and thread"] = result.median(OP) / size * session.threads * 1e9
