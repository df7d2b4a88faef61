"""Products of rows grouped by their blocks: the dense product's parts, adjoints, threads, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan import ops
from longspan.ops import BlockSets, grouped_expand, grouped_reduce, grouped_weight
from longspan.ops.reference import grouped as reference
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck
from tests.ops.grouped_cases import CASES, Problem

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
NAMES = ("grouped_expand", "grouped_reduce")


def learned(name: str, function: Callable[..., Tensor], problem: Problem, given: dict[str, Any]) -> dict[str, Tensor]:
    """The result and the gradients of a fixed functional."""
    leaves = {key: x.clone().requires_grad_() for key, x in given.items() if key != "tail"}
    if "tail" in given:
        leaves |= {key: x.clone().requires_grad_() for key, x in zip(("p", "q"), given["tail"], strict=True)}
    arguments = {key: x for key, x in leaves.items() if key not in ("p", "q")}
    if "tail" in given:
        arguments["tail"] = leaves["p"], leaves["q"]
    y = function(sets=problem.sets(), by_rows=problem.by_rows, **arguments)
    weight = (
        torch.randn(y.shape, generator=torch.Generator().manual_seed(5), dtype=F64).to(given["x"].dtype).to(y.dtype)
    )
    (y * weight).sum().backward()
    return {"y": y.detach()} | {f"d{key}": x.grad for key, x in leaves.items()}


def cast(given: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return {key: tuple(t.to(dtype) for t in x) if key == "tail" else x.to(dtype) for key, x in given.items()}


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_error_bound(name: str, case: str, dtype: torch.dtype) -> None:
    problem = CASES[case]
    given = problem.tensors(name, dtype)
    found = learned(name, getattr(ops, name), problem, given)
    oracle = getattr(reference, name)
    exact = learned(name, oracle, problem, cast(given, F64))
    rounded = learned(name, oracle, problem, cast(given, F32 if dtype == F64 else dtype))
    for key, value in found.items():
        factor = FORWARD if key == "y" else BACKWARD
        torchs = rounded[key] if dtype != BF16 else rounded[key].to(value.dtype)
        assert_error_bound(f"{case} {key}", value, torchs, exact[key], factor)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_weight_gradient(case: str, dtype: torch.dtype, wide: bool) -> None:
    problem = CASES[case]
    a, b = problem.pair(dtype)
    sets = problem.sets()
    found = grouped_weight(a, b, sets, by_rows=problem.by_rows, wide=wide)
    exact = reference.grouped_weight(a.double(), b.double(), sets, by_rows=problem.by_rows)
    kind = F32 if dtype == F64 or wide else dtype
    rounded = reference.grouped_weight(a.to(kind), b.to(kind), sets, by_rows=problem.by_rows)
    assert_error_bound(case, found, rounded, exact, FORWARD)


def test_blocks_without_rows_get_no_gradient() -> None:
    problem = CASES["empty blocks"]
    a, b = problem.pair(F32)
    dweight = grouped_weight(a, b, problem.sets()).unflatten(0, (4, problem.width))
    assert (dweight[[0, 2]] == 0).all()
    assert (dweight[[1, 3]] != 0).any()


@pytest.mark.parametrize("by_rows", [True, False])
def test_adjoints(by_rows: bool) -> None:
    problem = Problem(by_rows=by_rows, rank=0, bias=False)
    sets = problem.sets()
    given = problem.tensors("grouped_expand", F64)
    x, weight = given["x"], given["weight"]
    y = torch.randn(problem.n, problem.active * problem.width, dtype=F64)
    one = (grouped_expand(x, weight, sets, by_rows=by_rows) * y).sum()
    other = (x * grouped_reduce(y, weight, sets, by_rows=by_rows)).sum()
    third = (weight * grouped_weight(y, x, sets, by_rows=by_rows)).sum()
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, third)


def test_all_blocks_are_the_dense_product() -> None:
    problem = Problem(active=4, rank=0, bias=False)
    given = problem.tensors("grouped_expand", F32)
    torch.testing.assert_close(grouped_expand(**given, sets=problem.sets()), given["x"] @ given["weight"].mT)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck(name: str) -> None:
    torch.set_num_threads(1)  # thousands of products of a few numbers
    problem = Problem(n=6, width=3, C=4, rank=2, by_rows=name == "grouped_expand")
    given = problem.tensors(name, F64)
    sets = problem.sets()
    leaves = [given[key].requires_grad_() for key in ("x", "weight", "bias")] + [
        t.requires_grad_() for t in given["tail"]
    ]

    def run(x: Tensor, weight: Tensor, bias: Tensor, p: Tensor, q: Tensor) -> Tensor:
        return getattr(ops, name)(x, weight, sets, bias, by_rows=problem.by_rows, tail=(p, q))

    assert torch.autograd.gradcheck(run, leaves)


@pytest.mark.parametrize("name", NAMES)
def test_a_tail_that_is_wider_than_the_rows_has_wide_gradients(name: str) -> None:
    problem = Problem()
    given, sets = problem.tensors(name, BF16), problem.sets()
    found = {}
    for dtype in (BF16, F64):
        leaves = [t.to(F64 if dtype == F64 else F32).requires_grad_() for t in given["tail"]]
        x, weight = given["x"].to(dtype), given["weight"].to(dtype)
        y = getattr(ops, name)(x, weight, sets, by_rows=problem.by_rows, tail=tuple(leaves))
        dy = torch.linspace(-1, 1, y.numel()).reshape(y.shape).to(BF16).to(dtype)
        found[dtype] = torch.autograd.grad(y, leaves, dy)
    for ours, exact in zip(found[BF16], found[F64], strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=2e-6 * exact.abs().max().item())


def test_threads_change_no_bit() -> None:
    problem = CASES["wide"]
    given = problem.tensors("grouped_expand", F32)
    assert_threads_change_no_bit(lambda: learned("grouped_expand", grouped_expand, problem, given))


def test_op_check_and_compile() -> None:
    problem = Problem()
    sets = problem.sets()
    for name in NAMES:
        given = problem.tensors(name, F32)
        p, q = given["tail"]
        tensors = [t.requires_grad_() for t in (given["x"], given["weight"], given["bias"], p, q)]
        arguments = (*tensors, sets.offsets, 4, 2, True)
        opcheck(getattr(torch.ops.longspan, name).default, arguments)
    a, b = problem.pair(F32)
    opcheck(torch.ops.longspan.grouped_weight.default, (a, b, sets.offsets, 4, 2, True, False))
    given = problem.tensors("grouped_expand", F32)
    compiled = torch.compile(lambda x, w: grouped_expand(x, w, sets), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(given["x"], given["weight"]), grouped_expand(given["x"], given["weight"], sets))


X, W = torch.zeros(6, 5), torch.zeros(8, 5)
SETS = Problem(n=6).sets()
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: grouped_expand(X[0], W, SETS), r"the rows have shape \(5,\)"),
    (lambda: grouped_expand(X.int(), W, SETS), "the rows is torch.int32"),
    (lambda: grouped_expand(X, W.double(), SETS), "the weight is torch.float64"),
    (lambda: grouped_expand(X, W, BlockSets(SETS.offsets, 9, 2)), "2 of 9 blocks are active; allowed"),
    (lambda: grouped_expand(X, W, BlockSets(SETS.offsets, 4, 3)), r"4 sets take int32 \(5,\) on cpu"),
    (lambda: grouped_expand(X, W, BlockSets(SETS.offsets.long(), 4, 2)), "offsets are torch.int64"),
    (lambda: grouped_expand(X, W, BlockSets(SETS.offsets.to("meta"), 4, 2)), "offsets are torch.int32 .* on meta"),
    (lambda: grouped_expand(X, W, BlockSets(SETS.offsets * 0, 4, 2)), "must grow from 0 to the 6 rows"),
    (lambda: grouped_expand(X, W[:7], SETS), "the weight does not fit x and the blocks"),
    (lambda: grouped_reduce(X, W, SETS), "the weight does not fit x and the blocks"),
    (lambda: grouped_expand(X, W, SETS, tail=(X[:, :1], W[:, :1].to("meta"))), "q is on meta and the rows on cpu"),
    (lambda: grouped_weight(X, X.to("meta"), SETS), "b is on meta and the rows on cpu"),
    (lambda: grouped_weight(X, X, SETS), "2 slots of columns"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
