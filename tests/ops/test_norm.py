"""Row norms against the float64 reference: error bound, gradients, schema, compilation, laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.memory import measure
from longspan.ops import Norm, Projection, apply_norm, layer_norm, norm_lora_linear, rms_norm
from longspan.ops.reference import norm as reference
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck
from tests.ops.norm_cases import CASES, F32, F64, Problem

BF16 = torch.bfloat16
DTYPES = (F32, F64, BF16)
DIRECTIONS = {"y": FORWARD, "sum": FORWARD, "dx": BACKWARD, "dresidual": BACKWARD, "dweight": BACKWARD}
DIRECTIONS["dbias"] = BACKWARD


def ours(problem: Problem) -> Callable[..., Any]:
    def call(x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> Any:
        if problem.centered:
            return layer_norm(x, weight, bias, residual=residual, eps=problem.eps)
        return rms_norm(x, weight, residual=residual, eps=problem.eps, weight_offset=problem.weight_offset)

    return call


def run(problem: Problem, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in tensors.items()}
    found = ours(problem)(*(leaves.get(name) for name in ("x", "residual", "weight", "bias")))
    dy, dsum = (x.to(tensors["x"].device) for x in problem.upstream(tensors["x"].dtype))
    if problem.residual:
        y, total = found
        torch.autograd.backward((y, total), (dy, dsum))
        values = {"y": y.detach(), "sum": total.detach()}
    else:
        found.backward(dy)
        values = {"y": found.detach()}
    return values | {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def assert_close(problem: Problem, dtype: torch.dtype) -> None:
    tensors = problem.tensors(dtype)
    got = run(problem, tensors)
    exact = problem.oracle(tensors, F64)
    rounded = problem.oracle(tensors, F32 if dtype == F64 else dtype)
    for values in (exact, rounded):
        if problem.residual:
            values["dresidual"] = values["dx"]
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert_error_bound(name, value, rounded[name].to(value.dtype), exact[name], DIRECTIONS[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_bound(name: str, dtype: torch.dtype) -> None:
    assert_close(CASES[name], dtype)


@settings(max_examples=60)
@given(
    T=st.integers(0, 70),
    C=st.integers(1, 90),
    kind=st.sampled_from(["rms", "layer"]),
    weight=st.booleans(),
    bias=st.booleans(),
    residual=st.booleans(),
)
def test_any_problem(T: int, C: int, kind: str, weight: bool, bias: bool, residual: bool) -> None:
    assert_close(Problem(T, C, kind, weight, bias and kind == "layer", residual, eps=1e-3), F64)


@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("residual", [False, True])
def test_gradcheck(kind: str, residual: bool) -> None:
    problem = Problem(4, 7, kind, bias=kind == "layer", residual=residual, weight_offset=0.5 if kind == "rms" else 0.0)
    tensors = {name: x.requires_grad_() for name, x in problem.tensors(F64).items()}
    names = tuple(tensors)

    def function(*values: Tensor) -> Any:
        by_name = dict(zip(names, values, strict=True))
        return ours(problem)(*(by_name.get(name) for name in ("x", "residual", "weight", "bias")))

    assert torch.autograd.gradcheck(function, tuple(tensors.values()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["layer residual", "rms", "no weight"])
def test_opcheck(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    tensors = {n: x.requires_grad_() for n, x in problem.tensors(dtype).items()}
    x, residual, weight, bias = (tensors.get(n) for n in ("x", "residual", "weight", "bias"))
    arguments = (x, residual, weight, bias, problem.centered, problem.eps, 0.0)
    opcheck(torch.ops.longspan.norm_fwd.default, arguments)
    given = [None if t is None else t.detach() for t in (x, residual, weight, bias)]
    y, total, rstd, mean = torch.ops.longspan.norm_fwd(*given, problem.centered, problem.eps, 0.0)
    normed = given[0] if residual is None else total
    backward = (y, None, normed, given[2], given[3], rstd, mean, problem.centered, 0.0, problem.weight, problem.bias)
    opcheck(torch.ops.longspan.norm_bwd.default, backward)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_compiles_without_breaks(kind: str) -> None:
    problem = Problem(12, 32, kind, residual=True)

    def function(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
        y, total = ours(problem)(x * 2, residual, weight, None)
        return torch.cat([y, total])

    tensors, results = problem.tensors(F32), []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)):
        leaves = [tensors[n].clone().requires_grad_() for n in ("x", "residual", "weight")]
        y = call(*leaves)
        (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_a_residual_is_the_norm_of_the_stored_sum() -> None:
    problem = CASES["rms residual"]
    tensors = problem.tensors(BF16)
    y, total = rms_norm(tensors["x"], tensors["weight"], residual=tensors["residual"], eps=problem.eps)
    assert torch.equal(total, tensors["x"] + tensors["residual"])
    assert torch.equal(y, rms_norm(total, tensors["weight"], eps=problem.eps))


def test_torch_has_the_same_names_for_it() -> None:
    x, weight, bias = torch.randn(5, 3, 40), torch.randn(40), torch.randn(40)
    torch.testing.assert_close(rms_norm(x, weight, eps=1e-3), torch.nn.functional.rms_norm(x, (40,), weight, 1e-3))
    expected = torch.nn.functional.layer_norm(x, (40,), weight, bias, 1e-3)
    torch.testing.assert_close(layer_norm(x, weight, bias, eps=1e-3), expected)


@pytest.mark.parametrize("problem", [Problem(0, 8), Problem(0, 8, "layer", bias=True, residual=True)])
def test_no_rows(problem: Problem) -> None:
    got = run(problem, problem.tensors(F32))
    assert got["y"].shape == (0, 8)
    assert (got["dweight"] == 0).all()


@pytest.mark.parametrize("wanted", ["x", "residual", "weight", "bias"])
def test_only_what_requires_grad_gets_a_gradient(wanted: str) -> None:
    problem = CASES["layer residual"]
    leaves = {n: x.requires_grad_(n == wanted) for n, x in problem.tensors(F32).items()}
    y, total = layer_norm(leaves["x"], leaves["weight"], leaves["bias"], residual=leaves["residual"])
    (y.sum() + total.sum()).backward()
    assert [n for n, leaf in leaves.items() if leaf.grad is not None] == [wanted]


def test_one_output_may_go_unused() -> None:
    problem = CASES["rms residual"]
    for unused in (0, 1):
        x, residual = (problem.tensors(F64)[n].requires_grad_() for n in ("x", "residual"))
        out = rms_norm(x, residual=residual)
        out[1 - unused].sum().backward()
        both = torch.autograd.grad(
            rms_norm(x, residual=residual)[0].sum() * (unused == 1) + (x + residual).sum() * (unused == 0), x
        )[0]
        torch.testing.assert_close(x.grad, both)
        assert torch.equal(x.grad, residual.grad)


def test_strided_rows_and_more_dimensions() -> None:
    wide = torch.randn(2, 6, 100)
    x, weight = wide[..., 10:74], torch.randn(64)
    assert torch.equal(rms_norm(x, weight), rms_norm(x.contiguous(), weight))
    assert rms_norm(x.transpose(0, 1), weight).shape == (6, 2, 64)
    transposed = torch.randn(64, 5).T
    assert torch.equal(rms_norm(transposed, weight), rms_norm(transposed.contiguous(), weight))


def test_thread_count_changes_no_bit() -> None:
    problem = Problem(301, 70, "layer", bias=True, residual=True)
    assert_threads_change_no_bit(lambda: run(problem, problem.tensors(F32)))


@pytest.mark.parametrize(("kind", "statistics"), [("rms", 1), ("layer", 2)])
@pytest.mark.parametrize("residual", [False, True])
def test_saved_is_the_input_and_a_statistic_a_row(kind: str, statistics: int, residual: bool) -> None:
    problem = Problem(600, 256, kind, residual=residual)
    tensors = problem.tensors(F32)
    leaves = {n: x.requires_grad_() for n, x in tensors.items()}
    with measure() as m:
        y = ours(problem)(leaves["x"], leaves.get("residual"), leaves["weight"], None)
    rows = 600 * 256 * 4
    assert m.end_bytes == rows * (1 + residual) + statistics * 600 * 4
    del y


def test_a_graph_of_the_gradient_is_refused() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(rms_norm(x).sum(), x, create_graph=True)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_a_norm_by_itself_is_the_norm_before_a_linear_map(kind: str, bias: bool, offset: float) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight, shift = (torch.randn(n, generator=generator, dtype=F64).requires_grad_() for n in ((5, 7), (7,), (7,)))
    norm = Norm(weight, shift if bias else None, kind, 1e-3, offset)
    leaves = [x, weight, *([shift] if bias else [])]
    exact, _ = reference.norm(x, weight, norm.bias, centered=kind == "layer", eps=1e-3, weight_offset=offset)
    dy = torch.randn(5, 7, generator=generator, dtype=F64)
    expected = [exact, *torch.autograd.grad(exact, leaves, dy)]
    mapped = norm_lora_linear(x, [Projection(torch.eye(7, dtype=F64))], norm)[0]
    for y in (apply_norm(norm, x), mapped):
        for found, wanted in zip([y, *torch.autograd.grad(y, leaves, dy)], expected, strict=True):
            torch.testing.assert_close(found, wanted)


X, W = torch.zeros(2, 8), torch.zeros(8)
BAD: dict[str, Callable[[], Any]] = {
    "rms_norm: x has shape (); it must be [..., C] with C at least 1": lambda: rms_norm(torch.zeros(())),
    "rms_norm: x is torch.int64; allowed: float32, float64, bfloat16": lambda: rms_norm(X.long()),
    "rms_norm: x is torch.float16; allowed: float32, float64, bfloat16": lambda: rms_norm(X.half()),
    "layer_norm: weight has shape (7,) on cpu; it must be (8,) on cpu": lambda: layer_norm(X, W[:7]),
    "layer_norm: bias has shape (2, 8) on cpu; it must be (8,) on cpu": lambda: layer_norm(X, W, X),
    "rms_norm: weight is torch.float64; for x in torch.float32 it must be torch.float32": lambda: rms_norm(
        X, W.double()
    ),
    "rms_norm: weight is torch.float16; for x in torch.bfloat16 it must be torch.bfloat16 or torch.float32": lambda: (
        rms_norm(X.bfloat16(), W.half())
    ),
    "layer_norm: weight is torch.float32 and bias is torch.bfloat16; they must have one dtype": lambda: layer_norm(
        X.bfloat16(), W, W.bfloat16()
    ),
    "rms_norm: residual is torch.float32 (2, 7) on cpu; it must be torch.float32 (2, 8) on cpu, as x is": lambda: (
        rms_norm(X, residual=X[:, :7])
    ),
    "rms_norm: eps is -1.0; it must be finite and not negative": lambda: rms_norm(X, eps=-1.0),
    "apply_norm: norm.kind is 'batch'; allowed: rms, layer": lambda: apply_norm(Norm(kind="batch"), X),
    "rms_norm: weight_offset is inf; it must be finite": lambda: rms_norm(X, weight_offset=float("inf")),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
