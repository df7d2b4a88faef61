"""Linear maps with adapters against the float64 oracle: error bound, gradients, schema, compilation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.ops.reference.lora import lora_linear as reference
from tests.laws import BACKWARD, FORWARD, assert_error_bound, opcheck
from tests.ops.lora_cases import CASES, F32, F64, PARTS, Problem, mask_of

BF16 = torch.bfloat16
DTYPES = (F32, F64, BF16)


def assert_close(problem: Problem, dtype: torch.dtype) -> None:
    tensors = problem.tensors(dtype)
    got, exact = problem.run(tensors), problem.oracle(tensors, F64)
    rounded = problem.oracle(tensors, F32 if dtype == F64 else dtype)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        factor = FORWARD if name.startswith("y") else BACKWARD
        assert_error_bound(name, value, rounded[name].to(value.dtype), exact[name], factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_bound(name: str, dtype: torch.dtype) -> None:
    assert_close(CASES[name], dtype)


@settings(max_examples=60)
@given(
    T=st.integers(0, 70),
    C=st.integers(1, 90),
    sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(0, 20)), min_size=1, max_size=4),
    bias=st.booleans(),
    residual=st.booleans(),
    norm=st.sampled_from(["none", "rms", "layer"]),
    dropout=st.sampled_from([0.0, 0.1, 0.9]),
    dtype=st.sampled_from([F32, F64]),
)
def test_any_problem(
    T: int,
    C: int,
    sizes: list[tuple[int, int]],
    bias: bool,
    residual: bool,
    norm: str,
    dropout: float,
    dtype: torch.dtype,
) -> None:
    N, ranks = (tuple(column) for column in zip(*sizes, strict=True))
    problem = Problem(T, C, N, ranks, bias, residual, norm, norm_bias=norm == "layer", dropout=dropout, eps=1e-2)
    assert_close(problem, dtype)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_gradcheck(norm: str, dropout: float) -> None:
    problem = Problem(4, 7, (5, 3), (2, 3), True, True, norm, norm_bias=norm == "layer", dropout=dropout)
    for given_problem in (problem, replace(problem, N=(5,), ranks=(2,))):
        tensors = {name: x.requires_grad_() for name, x in given_problem.tensors(F64).items()}
        names = tuple(tensors)

        def function(*values: Tensor, p: Problem = given_problem, names: tuple[str, ...] = names) -> Any:
            return p.call(dict(zip(names, values, strict=True)))

        assert torch.autograd.gradcheck(function, tuple(tensors.values()))


def fwd_arguments(problem: Problem, tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    """What longspan::lora_linear_fwd is given."""
    none = tensors["x"].new_empty(0).detach()
    parts = {part: [tensors.get(f"{part}{i}", none) for i in range(len(problem.N))] for part in PARTS}
    return (
        tensors["x"],
        tensors.get("norm_weight"),
        tensors.get("norm_bias"),
        problem.norm,
        problem.eps,
        problem.weight_offset,
        *(parts[part] for part in PARTS[:-1]),
        list(problem.scalings),
        parts["residual"],
        problem.dropout,
        problem.seeds if problem.dropout else None,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["adapter", "layer group", "group dropout", "no adapter", "no norm weight"])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    tensors = {n: x.requires_grad_() for n, x in problem.tensors(dtype).items()}
    opcheck(torch.ops.longspan.lora_linear_fwd.default, fwd_arguments(problem, tensors))
    given_arguments = fwd_arguments(problem, {n: x.detach() for n, x in tensors.items()})
    _, s, rstd, mean = torch.ops.longspan.lora_linear_fwd(*given_arguments)
    x, norm_weight, norm_bias, *rest = given_arguments
    group, (dropout, seeds) = rest[:-3], rest[-2:]
    every = [1] * len(problem.N)
    needs = (True, norm_weight is not None, norm_bias is not None, every, [int(problem.bias)] * len(every))
    adapters = [int(rank > 0) for rank in problem.ranks]
    for first in (problem.upstream(dtype)[0], None):
        dys = [first, *problem.upstream(dtype)[1:]]
        arguments = (dys, x, norm_weight, norm_bias, *group, dropout, seeds, s, rstd, mean, *needs, adapters, adapters)
        opcheck(torch.ops.longspan.lora_linear_bwd.default, arguments)


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("residual", ("",)),
        ("odd sizes", ("",)),
        ("layer group", ("",)),
        ("rms group", ("lora",)),
        ("dropout", ("x",)),
        ("bias", ("bias", "lora_b")),
    ],
)
def test_compiles_without_breaks(name: str, trained: tuple[str, ...]) -> None:
    """Also where most is frozen; what trains begins as in `trained`."""
    problem = CASES[name]

    def function(tensors: dict[str, Tensor]) -> Tensor:
        return torch.cat(problem.call(tensors | {"x": tensors["x"] * 2}), -1)

    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)):
        leaves = {n: x.requires_grad_(n.startswith(trained)) for n, x in problem.tensors(F32).items()}
        y = call(leaves)
        (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves.values() if leaf.grad is not None)])
    assert len(results[0]) == 1 + sum(x.requires_grad for x in leaves.values())
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


@pytest.mark.parametrize("name", ["no adapter", "residual", "odd sizes"])
def test_the_reference_is_the_definition(name: str) -> None:
    problem = CASES[name]
    tensors = problem.tensors(F64)
    mask = torch.from_numpy(mask_of(int(problem.seeds[0]), problem.T, problem.C, problem.dropout))
    parts = [tensors.get(f"{part}0") for part in PARTS]
    y = reference(tensors["x"], *parts[:-1], problem.scaling, mask=mask, residual=parts[-1])
    torch.testing.assert_close(y, problem.oracle(tensors, F64)["y0"], rtol=1e-13, atol=1e-13)


ONE_OF_EACH = ["x", "norm_weight", "norm_bias", "weight1", "bias0", "lora_a2", "lora_b0", "residual1"]


@pytest.mark.parametrize("wanted", ONE_OF_EACH)
def test_only_what_requires_grad_gets_a_gradient(wanted: str) -> None:
    problem = CASES["layer group"]
    every = problem.run(problem.tensors(F64))
    leaves = {n: x.requires_grad_(n == wanted) for n, x in problem.tensors(F64).items()}
    torch.autograd.backward(problem.call(leaves), problem.upstream(F64))
    assert [n for n, leaf in leaves.items() if leaf.grad is not None] == [wanted]
    torch.testing.assert_close(leaves[wanted].grad, every[f"d{wanted}"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("used", [0, 1, 2])
def test_outputs_may_go_unused(used: int) -> None:
    """One output's gradient alone: what belongs to the others gets zeros, and the shared input its own part."""
    problem = CASES["layer group"]
    leaves = {n: x.requires_grad_() for n, x in problem.tensors(F64).items()}
    dys = [dy * (i == used) for i, dy in enumerate(problem.upstream(F64))]
    both = []
    for outputs in (slice(used, used + 1), slice(None)):
        ys = problem.call(leaves)[outputs]
        both.append(torch.autograd.grad(ys, list(leaves.values()), dys[outputs], allow_unused=True))
    for name, one, all_of_them in zip(leaves, *both, strict=True):
        if one is not None:
            torch.testing.assert_close(one, all_of_them, rtol=1e-13, atol=1e-13)
        else:
            assert name.startswith("residual")
            assert (all_of_them == 0).all()


@pytest.mark.parametrize("name", ["no rows", "one token"])
def test_shapes_of_few_rows(name: str) -> None:
    problem = CASES[name]
    got = problem.run(problem.tensors(F32))
    assert [tuple(got[f"y{i}"].shape) for i in range(len(problem.N))] == [(problem.T, n) for n in problem.N]
    if problem.T == 0:
        assert all((value == 0).all() for value in got.values())
        assert set(got) == {f"d{n}" for n in problem.tensors(F32)} | {"y0", "y1"}


def test_strided_inputs() -> None:
    problem = CASES["everything"]
    tensors = problem.tensors(F32)
    expected = problem.run(tensors)

    def rows_of_a_wider_one(x: Tensor) -> Tensor:
        wide = torch.full((x.shape[0], x.shape[1] + 9), float("nan"))
        wide[:, 4 : 4 + x.shape[1]] = x
        return wide[:, 4 : 4 + x.shape[1]]

    def transposed(x: Tensor) -> Tensor:
        return x.T.contiguous().T

    for strided in (rows_of_a_wider_one, transposed):
        leaves = {n: (strided(x) if x.dim() == 2 else x).requires_grad_() for n, x in tensors.items()}
        assert not any(x.is_contiguous() for x in leaves.values() if x.dim() == 2)
        (y,) = problem.call(leaves)
        got = torch.autograd.grad(y, list(leaves.values()), strided(problem.upstream(F32)[0]))
        assert torch.equal(y, expected["y0"])
        for name, gradient in zip(leaves, got, strict=True):
            assert torch.equal(gradient, expected[f"d{name}"]), name


def test_more_dimensions() -> None:
    problem = Problem(T=12, residual=True, norm="rms", N=(24, 8), ranks=(4, 2), dropout=0.3)
    tensors = problem.tensors(F32)
    flat = problem.call(tensors)
    deep = {n: x.reshape(2, 1, 6, -1) if n[0] == "r" or n == "x" else x for n, x in tensors.items()}
    for a, b in zip(flat, problem.call(deep), strict=True):
        assert b.shape == (2, 1, 6, a.shape[1])
        assert torch.equal(a, b.reshape(a.shape))
    lone = {n: x[0] if n[0] == "r" or n == "x" else x for n, x in tensors.items()}
    assert [y.shape for y in problem.call(lone)] == [(24,), (8,)]
    assert torch.equal(problem.call(lone)[1], flat[1][0])
