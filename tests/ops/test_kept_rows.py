"""Rows that are gathered, scattered, and leave and join the residual stream: equal to masks, nothing else saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.ops import (
    KeptRows,
    Projection,
    gather_rows,
    linear_scatter_add_,
    place_rows,
    scatter_add_rows,
)

F64 = torch.float64
M, C = 23, 12
CHOICES = {"some": [0, 3, 4, 11, 22], "one": [7], "none": [], "all": list(range(M))}


def numbers(name: str) -> Tensor:
    return torch.tensor(CHOICES[name], dtype=torch.int64)


def stream() -> Tensor:
    torch.manual_seed(3)
    return torch.randn(M, C, dtype=F64, requires_grad=True)


@pytest.mark.parametrize("name", CHOICES)
def test_gather_and_scatter_are_adjoint(name: str) -> None:
    x, rows = stream().detach(), numbers(name)
    y = torch.randn(len(rows), C, dtype=F64)
    scattered = scatter_add_rows(torch.zeros_like(x), y, rows)
    torch.testing.assert_close((gather_rows(x, rows) * y).sum(), (x * scattered).sum(), rtol=1e-13, atol=0)
    assert torch.equal(scatter_add_rows(x, y, rows) - x, (x + scattered) - x)


@pytest.mark.parametrize("name", CHOICES)
def test_gradcheck(name: str) -> None:
    rows = numbers(name)
    y = torch.randn(len(rows), C, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: gather_rows(x, rows), (stream(),))
    assert torch.autograd.gradgradcheck(lambda x: gather_rows(x, rows), (stream(),))
    assert torch.autograd.gradcheck(lambda x, y: scatter_add_rows(x, y, rows), (stream(), y))


def branch(x: Tensor, weight: Tensor) -> Tensor:
    return x + torch.tanh(x) @ weight


def masked(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    kept = torch.zeros(M, 1, dtype=torch.bool).index_fill(0, rows, True)
    return torch.where(kept, branch(x, weight), x)


@pytest.mark.parametrize("name", CHOICES)
def test_kept_rows_go_through_the_branch_and_others_ride(name: str) -> None:
    rows, x, weight = numbers(name), stream(), torch.randn(C, C, dtype=F64, requires_grad=True)
    kept = KeptRows(rows)
    out = kept.leave(x * 1, branch(kept.enter(x * 1), weight)) if name == "all" else _through(kept, x, weight)
    expected = masked(x, weight, rows)
    torch.testing.assert_close(out, expected, rtol=1e-14, atol=1e-14)
    dropped = torch.ones(M, dtype=torch.bool).index_fill(0, rows, False)
    assert torch.equal(out[dropped], x[dropped])
    dy = torch.randn_like(out)
    found, wanted = (torch.autograd.grad(y, (x, weight), dy) for y in (out, expected))
    for given, right in zip(found, wanted, strict=True):
        torch.testing.assert_close(given, right, rtol=1e-13, atol=1e-13)
    assert torch.equal(found[0][dropped], dy[dropped])


def _through(kept: KeptRows, x: Tensor, weight: Tensor) -> Tensor:
    x = x.clone()
    return kept.leave(x, branch(kept.enter(x), weight))


def test_leave_writes_nothing_to_the_stream() -> None:
    x = stream()
    before, kept = x.detach().clone(), KeptRows(numbers("some"))
    kept.leave(x, kept.enter(x) * 2)
    assert torch.equal(x, before)
    assert x._version == 0


def test_a_stream_that_is_known_has_the_gradient_of_rows_only() -> None:
    rows, x, weight = numbers("some"), stream(), torch.randn(C, C, dtype=F64, requires_grad=True)
    with torch.no_grad():
        everything = branch(x, weight)
    kept = KeptRows(rows)
    out = kept.leave_as(x, branch(kept.enter(x), weight), everything)
    assert out is everything
    m = torch.zeros(M, 1, dtype=F64).index_fill(0, rows, 1)
    f = branch(x, weight) - x
    wanted = torch.autograd.grad(x + m * f + (1 - m) * f.detach(), (x, weight), torch.ones_like(x))
    for given, right in zip(torch.autograd.grad(out, (x, weight), torch.ones_like(x)), wanted, strict=True):
        torch.testing.assert_close(given, right, rtol=1e-13, atol=1e-13)


def test_only_numbers_are_saved() -> None:
    rows, x = numbers("some"), stream()

    def run() -> Tensor:
        kept = KeptRows(rows)
        return kept.leave(x, kept.enter(x))

    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        run()
        gather_rows(x, rows)
        place_rows(gather_rows(x, rows), rows, x.detach())
    assert all(t.dtype == torch.int64 and len(t) == len(rows) for t in saved)


def test_a_branch_that_never_leaves_is_named() -> None:
    kept, x = KeptRows(numbers("some")), stream()
    with pytest.raises(RuntimeError, match="entered and never left"):
        kept.enter(x).sum().backward()


def test_a_frozen_stream_leaves_nothing_waiting() -> None:
    kept, x = KeptRows(numbers("some")), stream().detach()
    y = torch.randn(5, C, dtype=F64, requires_grad=True)
    kept.leave(x, y).sum().backward()
    assert kept._waiting is None
    assert torch.equal(y.grad, torch.ones_like(y))


def test_place_rows_is_the_stop_gradient_of_others() -> None:
    rows, full = numbers("some"), stream().detach()
    part = full[rows].clone().requires_grad_()
    out = place_rows(part, rows, full)
    assert torch.equal(out, full)
    assert out.data_ptr() == full.data_ptr()
    dy = torch.randn_like(out)
    out.backward(dy)
    assert torch.equal(part.grad, dy[rows])  # type: ignore[arg-type]


class TestLinearScatterAdd:
    N, R = 20, 3

    def tensors(self, K: int, dtype: torch.dtype = F64) -> list[Tensor]:
        torch.manual_seed(0)
        shapes = [(K, self.N), (C, self.N), (C,), (self.R, self.N), (C, self.R)]
        return [torch.randn(shape, dtype=F64).mul(0.3).to(dtype).requires_grad_() for shape in shapes]

    def run(self, x: Tensor, rows: Tensor, o: Tensor, w: Tensor, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return linear_scatter_add_(x * 1, o, Projection(w, bias, a, b, 0.5), rows)

    @pytest.mark.parametrize("name", CHOICES)
    def test_gradcheck(self, name: str) -> None:
        rows = numbers(name)
        given = self.tensors(len(rows))
        assert torch.autograd.gradcheck(lambda x, *t: self.run(x, rows, *t), (stream(), *given))

    @pytest.mark.parametrize("name", CHOICES)
    def test_equals_its_parts(self, name: str) -> None:
        rows, x = numbers(name), stream()
        o, w, bias, a, b = self.tensors(len(rows))
        added = o @ w.T + bias + 0.5 * (o @ a.T) @ b.T
        torch.testing.assert_close(
            self.run(x, rows, o, w, bias, a, b), x.index_add(0, rows, added), rtol=1e-13, atol=1e-13
        )

    def test_the_write_is_counted(self) -> None:
        rows, x = numbers("some"), stream()
        y = x * 1
        needs_y = y.exp() * y
        given = self.tensors(len(rows))
        assert linear_scatter_add_(y, given[0], Projection(given[1]), rows) is y
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            needs_y.sum().backward()

    def test_the_gradient_of_the_stream_passes(self) -> None:
        x, rows = stream(), numbers("some")
        dy = torch.randn_like(x)
        self.run(x, rows, *self.tensors(len(rows))).backward(dy)
        assert torch.equal(x.grad, dy)  # type: ignore[arg-type]


BAD: dict[str, tuple[Callable[[Tensor, Any], Any], Any, str]] = {
    "int32": (gather_rows, torch.zeros(2, dtype=torch.int32), "rows is torch.int32"),
    "2-D rows": (gather_rows, torch.zeros(2, 2, dtype=torch.int64), "must be int64"),
    "twice": (gather_rows, torch.tensor([1, 2, 1]), "rows has 1 twice; they must be different"),
    "scattered twice": (lambda x, r: scatter_add_rows(x, x[:2], r), torch.tensor([3, 3]), "rows has 3 twice"),
    "entered twice": (lambda x, r: KeptRows(r).enter(x), torch.tensor([2, 2]), "rows has 2 twice"),
    "written twice": (
        lambda x, r: linear_scatter_add_(x * 1, x[:2], Projection(x[:12]), r),
        torch.tensor([2, 2]),
        "2 twice",
    ),
    "out of range": (gather_rows, torch.tensor([3, 1000]), "rows has 1000; allowed: 0 to"),
    "negative": (gather_rows, torch.tensor([2, -1]), "rows has -1; allowed: 0 to"),
    "placed twice": (
        lambda x, r: place_rows(x[:2].detach(), r, x.detach()),
        torch.tensor([1, 1]),
        "place_rows: rows has 1 twice",
    ),
    "placed elsewhere": (
        lambda x, r: place_rows(x[:2].detach(), r, x.detach()),
        torch.tensor([1]),
        r"place_rows: x is torch.float64 \(2, 12\)",
    ),
    "leave": (lambda x, r: KeptRows(r).leave(x, x), torch.tensor([1, 2]), r"must be torch.float64 \(2, 12\)"),
    "leave_as": (
        lambda x, r: KeptRows(r).leave_as(x, x[:2], x),
        torch.tensor([1, 2]),
        "computed without a graph",
    ),
    "place": (lambda x, r: place_rows(x[:2], r, x), torch.tensor([1, 2]), "without a graph"),
    "residual": (
        lambda x, r: linear_scatter_add_(x * 1, x[:2], Projection(x[:12], residual=x[:2]), r),
        torch.tensor([1, 2]),
        "has a residual",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    run, rows, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        run(stream(), rows)
