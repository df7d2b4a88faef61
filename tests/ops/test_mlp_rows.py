"""The feed-forward of some rows against masks on all of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.ops import Norm, Projection, activation, glu, mlp_rows, mlp_skip, norm_gather_linear, norm_lora_linear

F64 = torch.float64
M, C, F, R = 19, 12, 20, 3
CHOICES = {"some": [0, 4, 5, 18], "one": [7], "none": [], "all": list(range(M))}


def tensors(kind: str) -> tuple[list[Projection], Projection, Norm, list[Tensor]]:
    torch.manual_seed(4)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64).mul(0.4).requires_grad_()

    def one(n: int, c: int) -> Projection:
        return Projection(draw(n, c), draw(n), draw(R, c), draw(n, R), 0.5)

    widths = {"gated": (F, F), "packed": (2 * F,), "plain": (F,)}[kind]
    up, down, norm = [one(n, C) for n in widths], one(C, F), Norm(draw(C))
    leaves = [t for p in (*up, down) for t in (p.weight, p.bias, p.lora_a, p.lora_b) if t is not None]
    assert norm.weight is not None
    return up, down, norm, [*leaves, norm.weight]


def dense(x: Tensor, kind: str, up: list[Projection], down: Projection, norm: Norm) -> Tensor:
    wide = norm_lora_linear(x, up, norm)
    hidden = activation(wide[0], "silu") if kind == "plain" else glu(*wide, activation="silu")
    return norm_lora_linear(hidden, [down])[0]


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("kind", ["gated", "packed", "plain"])
@pytest.mark.parametrize("run", [mlp_skip, mlp_rows])
def test_equals_the_masked_branch(run: Any, kind: str, name: str) -> None:
    up, down, norm, leaves = tensors(kind)
    rows = torch.tensor(CHOICES[name], dtype=torch.int64)
    m = torch.zeros(M, 1, dtype=torch.bool).index_fill(0, rows, True)
    x = torch.randn(M, C, dtype=F64, requires_grad=True)
    y = run(x, rows, up, down, norm, activation="silu", packed=kind == "packed")
    f = dense(x, kind, up, down, norm)
    expected = x + torch.where(m, f, f.detach() if run is mlp_rows else torch.zeros_like(f))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(y)
    given, wanted = (torch.autograd.grad(z, [x, *leaves], dy) for z in (y, expected))
    for ours, theirs in zip(given, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)
    assert torch.equal(given[0][~m[:, 0]], dy[~m[:, 0]])
    if run is mlp_skip:
        assert torch.equal(y[~m[:, 0]], x[~m[:, 0]])


@pytest.mark.parametrize("run", [mlp_skip, mlp_rows])
def test_only_kept_rows_are_saved(run: Any) -> None:
    up, down, norm, leaves = tensors("gated")
    known = {t.untyped_storage()._cdata for t in leaves}
    x, rows = torch.randn(M, C, dtype=F64, requires_grad=True), torch.tensor([1, 3, 8])
    saved: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage()._cdata not in known:
            saved[t.untyped_storage()._cdata] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run(x, rows, up, down, norm, activation="silu")
    assert sum(saved.values()) == 3 * 8 * (C + 1 + 3 * F + 3 * R)  # x, rstd, gate, up, hidden, mids


@pytest.mark.parametrize("name", CHOICES)
def test_norm_gather_linear(name: str) -> None:
    up, _, norm, _ = tensors("gated")
    rows = torch.tensor(CHOICES[name], dtype=torch.int64)
    x = torch.randn(M, C, dtype=F64, requires_grad=True)
    given, expected = norm_gather_linear(x, rows, up, norm), norm_lora_linear(x, up, norm)
    for ours, theirs in zip(given, expected, strict=True):
        torch.testing.assert_close(ours, theirs[rows], rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(lambda x: norm_gather_linear(x, rows, up, norm), (x,))


def test_bad_input() -> None:
    up, down, norm, _ = tensors("gated")
    x, rows = torch.randn(M, C, dtype=F64), torch.tensor([1])
    for run in (mlp_skip, mlp_rows):
        with pytest.raises(ValueError, match="3 projections up"):
            run(x, rows, [*up, up[0]], down, norm, activation="silu")
        with pytest.raises(ValueError, match="must be int64"):
            run(x, rows.int(), up, down, norm, activation="silu")
