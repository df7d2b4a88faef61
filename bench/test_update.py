"""Steps of an optimiser over the parameters of a small model: ops masked_adamw_ and masked_sgd_ on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from bench.conftest import Session
from bench.layer_parts import KERNELS, OP, error_law, run_part
from longspan import kernels, ops
from longspan.ops import UpdateMask
from longspan.ops.reference.magnitude import kth_magnitude
from longspan.ops.reference.update import masked_adamw, masked_sgd

TORCH = "torch"
SHAPES = [(576, 1536)] * 36 + [(576,)] * 12
KEEP, LR, DECAY, MOMENTUM = 0.2, 1e-3, 0.1, 0.9


class Inputs:
    """Parameters, gradients and state of `shapes`, and the routes of one step in place."""

    def __init__(self, shapes: list[tuple[int, ...]], op: str, dtype: torch.dtype, masked: bool, threads: int) -> None:
        self.adamw, self.threads = op == "masked_adamw_", threads
        self.params, self.firsts, grads = ([torch.randn(s) for s in shapes] for _ in range(3))
        self.seconds = [x.square() for x in self.firsts]
        self.grads = [g.to(dtype) for g in grads]
        self.size = sum(x.numel() for x in self.params)
        self.steps = [torch.ones(()) for _ in shapes]
        self.options: dict[str, Any] = {}
        if masked:
            wanted = [max(1, int(KEEP * g.numel())) for g in self.grads]
            self.options["thresholds"] = ops.kth_magnitude(self.grads, wanted)
            self.options["masks"] = [UpdateMask("threshold", group=i) for i in range(len(shapes))]

    def state(self) -> tuple[Tensor, ...]:
        """What a step changes."""
        return (*self.params, *self.firsts, *(self.seconds if self.adamw else ()))

    def op(self) -> tuple[Tensor, ...]:
        """The torch ops."""
        if self.adamw:
            scalars = ops.adamw_scalars(2, lr=LR, weight_decay=DECAY)
            ops.masked_adamw_(self.params, self.grads, self.firsts, self.seconds, scalars, **self.options)
        else:
            scalars = ops.sgd_scalars(lr=LR, momentum=MOMENTUM)
            ops.masked_sgd_(self.params, self.grads, self.firsts, scalars, **self.options)
        return self.state()

    def pybind(self) -> tuple[Tensor, ...]:
        """longspan.kernels: masked_adamw_ and masked_sgd_, which know no torch."""
        options: dict[str, Any] = {"threads": self.threads}
        if self.options:
            found, count = self.options["thresholds"], len(self.params)
            options |= {"kinds": ["threshold"] * count, "groups": list(range(count))}
            options |= {"bits": found.bits.numpy(), "cut": found.cut.numpy()}
        arrays = [[x.numpy() for x in each] for each in (self.params, self.firsts, self.seconds)]
        factors = np.ones(len(self.params), np.float32)
        if self.adamw:
            scalars = ops.adamw_scalars(2, lr=LR, weight_decay=DECAY).numpy()
            kernels.masked_adamw_(arrays[0], self.grads, arrays[1], arrays[2], scalars, factors, **options)
        else:
            scalars = ops.sgd_scalars(lr=LR, momentum=MOMENTUM).numpy()
            kernels.masked_sgd_(arrays[0], self.grads, arrays[1], scalars, factors, **options)
        return self.state()

    def by_torch(self) -> tuple[Tensor, ...]:
        """Masks by comparison where there are any, and the fused step of torch.optim."""
        grads = self.grads
        if self.options:
            limits = self.options["thresholds"].values
            grads = [g * (g.abs() >= limit) for g, limit in zip(grads, limits, strict=True)]
        grads = [g.float() for g in grads]
        if self.adamw:
            torch._fused_adamw_(  # type: ignore[attr-defined]
                self.params, grads, self.firsts, self.seconds, [], self.steps,
                lr=LR, beta1=0.9, beta2=0.999, weight_decay=DECAY, eps=1e-8, amsgrad=False, maximize=False,
            )  # fmt: skip
        else:
            torch._fused_sgd_(  # type: ignore[attr-defined]
                self.params, grads, self.firsts,
                weight_decay=0.0, momentum=MOMENTUM, lr=LR, dampening=0.0, nesterov=False, maximize=False,
                is_first_step=False,
            )  # fmt: skip
        return self.state()

    def exact(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """The definition in another dtype."""
        found: list[list[Tensor]] = [[], [], []]
        for p, g, m, v in zip(self.params, self.grads, self.firsts, self.seconds, strict=True):
            kept = torch.ones_like(p, dtype=torch.bool)
            if self.options:
                kept = kth_magnitude([g], max(1, int(KEEP * g.numel())))[1].view(g.shape)
            given = [x.to(dtype) for x in (p, g, m, v)]
            if self.adamw:
                results = masked_adamw(*given, kept, mode="grad", step=2, lr=LR, weight_decay=DECAY)
            else:
                results = masked_sgd(*given[:3], kept, mode="grad", lr=LR, momentum=MOMENTUM)
            for each, x in zip(found, results, strict=False):
                each.append(x)
        return tuple(x for each in found for x in each)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "threshold"])
@pytest.mark.parametrize("op", ["masked_adamw_", "masked_sgd_"])
def test_update(session: Session, benchmark: BenchmarkFixture, op: str, masked: bool, dtype: torch.dtype) -> None:
    """Against torch's fused steps, whose masks are torch's too; a copy is the roofline of what a step moves."""
    outcomes = []
    for _ in range(2):
        torch.manual_seed(0)
        small = Inputs([(33, 70), (500,)], op, dtype, masked, session.threads)
        torchs, exact = small.exact(torch.float32), small.exact(torch.float64)
        outcomes.append(small)
    first, second = outcomes
    checked = error_law((first.op, second.pybind), torchs, exact)
    inputs = Inputs(SHAPES, op, dtype, masked, session.threads)
    name = str(dtype).removeprefix("torch.")
    key = f"{op}|cpu|{name}|n={inputs.size},{'threshold' if masked else 'all'}"
    routes = {OP: inputs.op, KERNELS: inputs.pybind, TORCH: inputs.by_torch}
    moved = inputs.size * ((24 if inputs.adamw else 16) + dtype.itemsize)
    result = run_part(session, benchmark, key, checked, routes, moved, 0, TORCH)
    benchmark.extra_info["GB/s"] = moved / result.median(OP) / 1e9
