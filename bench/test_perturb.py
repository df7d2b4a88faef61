"""Perturbing and updating by noise on the CPU: ops perturb_ and es_update_ through torch and longspan.kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.conftest import Session
from bench.layer_parts import KERNELS, OP, error_law, run_part
from longspan import kernels, ops
from longspan.ops.reference.perturb import es_update, noise

TORCH = "torch"
SIZE, SCALE, SEED = 1 << 24, 1e-3, 11


class Inputs:
    """One float32 tensor; every route changes it in place by the sum of the members' noise."""

    def __init__(self, size: int, members: int, distribution: str, threads: int) -> None:
        self.w, self.members, self.distribution, self.threads = torch.randn(size), members, distribution, threads
        self.coefficients = [SCALE * (1 + n) for n in range(members)]
        self.seeds = list(range(SEED, SEED + members))

    def op(self) -> tuple[Tensor, ...]:
        """The torch ops."""
        if self.members == 1:
            ops.perturb_([self.w], SCALE, SEED, distribution=self.distribution)
        else:
            ops.es_update_([self.w], self.coefficients, self.seeds, distribution=self.distribution)
        return (self.w,)

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels: perturb_ and es_update_, which know no torch."""
        arrays = np.array(self.coefficients, np.float32), np.array(self.seeds), np.zeros(self.members, np.int64)
        call = kernels.perturb_ if self.members == 1 else kernels.es_update_
        call([self.w.numpy()], *arrays, distribution=self.distribution, threads=self.threads)
        return (self.w,)

    def by_torch(self) -> tuple[Tensor, ...]:
        """What MeZO and Evolution Strategies do in torch: a tensor of noise from a generator, and its sum."""
        for coefficient, seed in zip(self.coefficients, self.seeds, strict=True):
            generator = torch.Generator().manual_seed(seed)
            z = torch.empty_like(self.w)
            if self.distribution == "gaussian":
                z.normal_(generator=generator)
            else:
                z.bernoulli_(0.5, generator=generator).mul_(-2).add_(1)
            self.w.add_(z, alpha=coefficient)
        return (self.w,)

    def exact(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The definition in another dtype."""
        z = [noise(len(self.w), seed, distribution=self.distribution, dtype=dtype) for seed in self.seeds]
        return (es_update(self.w, self.coefficients, z),)


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
@pytest.mark.parametrize("members", [1, 8])
def test_perturb(session: Session, benchmark: BenchmarkFixture, members: int, distribution: str) -> None:
    """perturb_ (one member) and es_update_ (more) against torch's normal_ and add; a copy is the roofline of signs."""
    small, inputs = (Inputs(size, members, distribution, session.threads) for size in (1 << 12, SIZE))
    start, exact = small.w.clone(), (small.exact(torch.float32), small.exact(torch.float64))

    def fresh(route: str) -> tuple[Tensor, ...]:
        small.w = start.clone()
        return small.op() if route == OP else small.pybind()

    checked = error_law((lambda: fresh(OP), lambda: fresh(KERNELS)), *exact)
    name = "perturb_" if members == 1 else "es_update_"
    key = f"{name}|cpu|float32|n={SIZE},members={members},{distribution}"
    routes = {OP: inputs.op, KERNELS: inputs.pybind, TORCH: inputs.by_torch}
    moved = 8.0 * SIZE  # one pass over the weights: read and written
    result = run_part(session, benchmark, key, checked, routes, moved, 0, TORCH)
    benchmark.extra_info["ns an element, member and thread"] = (
        result.median(OP) / SIZE / members * session.threads * 1e9
    )
