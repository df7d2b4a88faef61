"""A computation replayed on some of its rows: the same values, their gradient, and nothing computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from longspan import ops
from longspan.ops import Norm, Projection, Recording

F64 = torch.float64
M, C, H, D = 30, 16, 2, 8
ROWS = torch.tensor([1, 2, 9, 15, 29])


class Counter(TorchDispatchMode):
    """Ops of longspan that reach a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "longspan":
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


class Branch:
    def __init__(self) -> None:
        torch.manual_seed(0)
        self.w = [torch.randn(n, C, dtype=F64, requires_grad=True) for n in (H * D, H * D)]
        self.a = torch.randn(3, C, dtype=F64, requires_grad=True)
        self.b = torch.randn(H * D, 3, dtype=F64, requires_grad=True)
        self.norm = Norm(torch.rand(C, dtype=F64).add(0.5).requires_grad_(), None, "rms")
        cos, sin = torch.rand(M, D // 2, dtype=F64), torch.rand(M, D // 2, dtype=F64)
        self.tables = cos, sin

    def leaves(self) -> list[Tensor]:
        assert self.norm.weight is not None
        return [*self.w, self.a, self.b, self.norm.weight]

    def run(self, x: Tensor, positions: Tensor) -> Tensor:
        group = [Projection(self.w[0], None, self.a, self.b, 0.5), Projection(self.w[1])]
        q, up = ops.norm_lora_linear(x, group, self.norm)
        q = ops.rope_(q, *self.tables, positions, heads=H)
        wide = ops.rms_norm(q.unflatten(1, (H, D)), torch.ones(D, dtype=F64)).flatten(1)
        return ops.glu(wide, up, activation="silu") * 2 + x


def test_values_gradients_and_calls() -> None:
    branch = Branch()
    x = torch.randn(M, C, dtype=F64)
    with torch.no_grad(), Recording(M) as recording:
        every = branch.run(x, torch.arange(M))
    part = x[ROWS].clone().requires_grad_()
    with Counter() as counter, recording.replay(ROWS):
        y = branch.run(part, ROWS)
    assert counter.names == [], "a product was computed again"
    assert torch.equal(y, every[ROWS])
    other = x[ROWS].clone().requires_grad_()
    expected = branch.run(other, ROWS)
    dy = torch.randn_like(y)
    given, wanted = (torch.autograd.grad(z, [p, *branch.leaves()], dy) for z, p in ((y, part), (expected, other)))
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_what_is_not_of_the_recording_is_written_for_real() -> None:
    """A copy that is rotated in place was not rotated by the recorded run."""
    branch = Branch()

    def run(x: Tensor, positions: Tensor) -> Tensor:
        q = ops.norm_lora_linear(x, [Projection(branch.w[0])])[0]
        return ops.rope_(q.clone(), *branch.tables, positions, heads=H)

    x = torch.randn(M, C, dtype=F64)
    with torch.no_grad(), Recording(M) as recording:
        every = run(x, torch.arange(M))
    with recording.replay(ROWS):
        y = run(x[ROWS], ROWS)
    assert torch.equal(y, every[ROWS])


@pytest.mark.parametrize(
    ("size", "second", "message"),
    [
        (M, lambda x: x, "were not taken"),
        (M, lambda x: ops.rms_norm(x, torch.ones(C, dtype=F64)), "where it called"),
        (M + 1, lambda x: ops.activation(x, "gelu"), "does not belong to 31 rows"),
    ],
)
def test_another_computation_is_named(size: int, second: Callable[[Tensor], Any], message: str) -> None:
    x = torch.randn(M, C, dtype=F64)
    with torch.no_grad(), Recording(size) as recording:
        ops.activation(x, "gelu")
    with pytest.raises(RuntimeError, match=message), recording.replay(ROWS):
        second(x[ROWS])
