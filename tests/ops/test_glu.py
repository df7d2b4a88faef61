"""Gated and plain activations against the float64 reference: error bound, gradients, schema, compilation, laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.memory import measure
from longspan.ops import ACTIVATIONS, activation, geglu, glu, swiglu
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck
from tests.ops import glu_cases
from tests.ops.glu_cases import CASES, F64, Problem

F32, BF16 = torch.float32, torch.bfloat16
DTYPES = (F32, F64, BF16)


def run(problem: Problem, tensors: list[Tensor], packed: bool = False) -> dict[str, Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    dy = problem.upstream(tensors[0].dtype).to(tensors[0].device)
    if packed:
        both = torch.cat(tensors, -1).requires_grad_()
        y = glu(both, activation=problem.activation)
        y.backward(dy)
        assert both.grad is not None
        gradients = list(both.grad.chunk(2, -1))
    else:
        y = glu(*leaves, activation=problem.activation) if problem.gated else activation(leaves[0], problem.activation)
        y.backward(dy)
        gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return {"y": y.detach()} | dict(zip(("dgate", "dup"), gradients, strict=False))


def assert_close(problem: Problem, dtype: torch.dtype, packed: bool = False) -> None:
    got = run(problem, problem.tensors(dtype), packed)
    exact, rounded = problem.oracle(F64, dtype), problem.oracle(F32 if dtype == F64 else dtype, dtype)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == dtype
        assert_error_bound(name, value, rounded[name], exact[name], FORWARD if name == "y" else BACKWARD)


def test_the_cases_have_every_activation() -> None:
    assert glu_cases.ACTIVATIONS == ACTIVATIONS


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_bound(name: str, dtype: torch.dtype) -> None:
    assert_close(CASES[name], dtype)
    if CASES[name].gated:
        assert_close(CASES[name], dtype, packed=True)


@settings(max_examples=60)
@given(
    T=st.integers(0, 40),
    F=st.integers(1, 90),
    name=st.sampled_from(ACTIVATIONS),
    form=st.sampled_from(["gated", "packed", "alone"]),
)
def test_any_problem(T: int, F: int, name: str, form: str) -> None:
    assert_close(Problem(T, F, name, form != "alone"), F64, form == "packed")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradcheck(name: str) -> None:
    gate, up = (x.requires_grad_() for x in Problem(3, 5, name).tensors(F64))
    with torch.no_grad():
        gate[gate.abs() < 0.1] = 0.5  # relu has a corner at 0
    assert torch.autograd.gradcheck(lambda g, u: glu(g, u, activation=name), (gate, up))
    assert torch.autograd.gradcheck(lambda g: activation(g, name), gate)
    both = torch.cat([gate, up], -1).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: glu(x, activation=name), both)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", ["gated", "packed", "alone"])
def test_opcheck(form: str, dtype: torch.dtype) -> None:
    gate, up = (x.requires_grad_() for x in Problem().tensors(dtype))
    second, packed = (up if form == "gated" else None), form == "packed"
    opcheck(torch.ops.longspan.glu_fwd.default, (gate, second, "gelu", packed))
    dy = torch.ones(9, 32 if packed else 64, dtype=dtype)
    given = (dy, gate.detach(), None if second is None else second.detach(), "gelu", packed)
    opcheck(torch.ops.longspan.glu_bwd.default, given)


@pytest.mark.parametrize("packed", [False, True])
def test_compiles_without_breaks(packed: bool) -> None:
    def function(gate: Tensor, up: Tensor) -> Tensor:
        return swiglu(torch.cat([gate * 2, up], -1)) if packed else swiglu(gate * 2, up)

    tensors, results = Problem().tensors(F32), []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)):
        leaves = [x.clone().requires_grad_() for x in tensors]
        y = call(*leaves)
        (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_packed_equals_apart_bit_for_bit() -> None:
    for name, problem in CASES.items():
        if not problem.gated:
            continue
        apart, packed = (run(problem, problem.tensors(F32), form) for form in (False, True))
        assert all(torch.equal(apart[key], packed[key]) for key in apart), name


def test_torch_has_the_same_names_for_it() -> None:
    functional = torch.nn.functional
    x, up = torch.randn(4, 3, 30), torch.randn(4, 3, 30)
    torch.testing.assert_close(swiglu(x, up), functional.silu(x) * up)
    torch.testing.assert_close(geglu(x, up), functional.gelu(x) * up)
    torch.testing.assert_close(geglu(x, up, approximate="tanh"), functional.gelu(x, approximate="tanh") * up)
    torch.testing.assert_close(activation(x, "relu"), functional.relu(x))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_extremes(name: str) -> None:
    x = torch.tensor([-1e30, -1e4, -100.0, -0.0, 0.0, 100.0, 1e4, float("nan")], requires_grad=True)
    y = activation(x, name)
    y.sum().backward()
    assert y.isnan().tolist() == [False] * 7 + [True]
    assert not x.grad[:7].isnan().any()
    assert (y[:3] == 0).all()
    assert y[5] == (1e4 if name == "relu2" else 100.0)


def test_strided_rows() -> None:
    wide = torch.randn(5, 100)
    gate, up = wide[:, 3:43], wide[:, 50:90]
    assert torch.equal(swiglu(gate, up), swiglu(gate.contiguous(), up.contiguous()))
    assert torch.equal(activation(wide.T, "silu"), activation(wide.T.contiguous(), "silu"))


@pytest.mark.parametrize("packed", [False, True])
def test_saved_is_gate_and_up(packed: bool) -> None:
    tensors = [x.requires_grad_() for x in Problem(300, 256).tensors(F32)]
    both = torch.cat(tensors, -1).detach().requires_grad_()
    with measure() as m:
        y = swiglu(both) if packed else swiglu(*tensors)
    assert m.peak_bytes == m.end_bytes == 300 * 256 * 4
    del y


def test_thread_count_changes_no_bit() -> None:
    problem = Problem(301, 70)
    assert_threads_change_no_bit(lambda: run(problem, problem.tensors(F32)))


def test_a_graph_of_the_gradient_is_refused() -> None:
    x = torch.randn(3, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(swiglu(x).sum(), x, create_graph=True)


X = torch.zeros(2, 8)
BAD: dict[str, Callable[[], Any]] = {
    "glu: activation is 'tanh'; allowed: silu, gelu, gelu_tanh, relu, relu2": lambda: glu(X, activation="tanh"),
    "activation: activation is ''; allowed: silu, gelu, gelu_tanh, relu, relu2": lambda: activation(X, ""),
    "glu: the input has no dimensions; it must be [..., F]": lambda: swiglu(torch.zeros(())),
    "glu: the input is torch.float16; allowed: float32, float64, bfloat16": lambda: swiglu(X.half()),
    "glu: gate has shape (2, 7); without up its last dimension must be even": lambda: swiglu(X[:, :7]),
    "glu: up is torch.float32 (2, 7) on cpu; it must be torch.float32 (2, 8) on cpu, as gate is": lambda: swiglu(
        X, X[:, :7]
    ),
    "geglu: approximate is 'erf'; allowed: none, tanh": lambda: geglu(X, approximate="erf"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
