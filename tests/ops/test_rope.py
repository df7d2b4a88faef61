"""Rotary embedding against the float64 reference: error bound, gradients, in place, schema, compilation, laws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.memory import measure
from longspan.ops import rope, rope_, rope_packed_, rope_table
from longspan.ops.reference.rope import rope as reference
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck
from tests.ops.rope_cases import CASES, LENGTH, Problem

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
DTYPES = (F32, F64, BF16)


def out_of_place(problem: Problem, x: Tensor, *rest: Tensor) -> Tensor:
    return rope(x, *rest, interleaved=problem.interleaved)


def in_place(problem: Problem, x: Tensor, *rest: Tensor) -> Tensor:
    return rope_(x.clone(), *rest, interleaved=problem.interleaved)


def in_place_projection(problem: Problem, x: Tensor, *rest: Tensor) -> Tensor:
    """On [B,T,H*D], as a projection leaves it."""
    B, H, T, D = problem.shape
    rows = x.transpose(1, 2).reshape(B, T, H * D).clone()
    return rope_(rows, *rest, heads=H, interleaved=problem.interleaved).view(B, T, H, D).transpose(1, 2)


ROUTES: dict[str, Callable[..., Tensor]] = {
    "rope": out_of_place,
    "rope_": in_place,
    "rope_ of a projection": in_place_projection,
}


def assert_close(problem: Problem, dtype: torch.dtype, route: str = "rope") -> None:
    x, *rest = problem.tensors(dtype)
    x.requires_grad_()
    y = ROUTES[route](problem, x, *rest)
    assert y.dtype == dtype
    y.backward(problem.upstream(dtype))
    exact, rounded = problem.oracle(F64, dtype), problem.oracle(F32 if dtype == F64 else dtype, dtype)
    assert_error_bound("y", y.detach(), rounded[0], exact[0], FORWARD)
    assert_error_bound("dx", x.grad, rounded[1], exact[1], BACKWARD)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", CASES)
def test_error_bound(name: str, route: str, dtype: torch.dtype) -> None:
    assert_close(CASES[name], dtype, route)


@settings(max_examples=40)
@given(
    B=st.integers(1, 3),
    H=st.integers(1, 4),
    T=st.integers(0, 70),
    D=st.integers(1, 70),
    share=st.floats(0, 1),
    interleaved=st.booleans(),
    batched=st.booleans(),
)
def test_any_problem(B: int, H: int, T: int, D: int, share: float, interleaved: bool, batched: bool) -> None:
    assert_close(Problem((B, H, T, D), 2 * int(share * D / 2), interleaved, batched), F64)


@pytest.mark.parametrize("name", ["partial", "interleaved"])
@pytest.mark.parametrize("route", ROUTES)
def test_gradcheck(route: str, name: str) -> None:
    problem = Problem((1, 2, 3, 8), 6, CASES[name].interleaved)
    x, *rest = problem.tensors(F64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ROUTES[route](problem, x, *rest), x)
    if route == "rope":
        assert torch.autograd.gradgradcheck(lambda x: rope(x, *rest, interleaved=problem.interleaved), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
def test_opcheck(interleaved: bool, dtype: torch.dtype) -> None:
    x, *rest = Problem((2, 2, 5, 16), 12).tensors(dtype)
    opcheck(torch.ops.longspan.rope.default, (x.requires_grad_(), *rest, interleaved, False))
    opcheck(torch.ops.longspan.rope_.default, (x.detach().clone(), *rest, interleaved, True))


@pytest.mark.parametrize("route", ["rope", "rope_", "rope_ of a projection"])
def test_compiles_without_breaks(route: str) -> None:
    problem = Problem((2, 2, 6, 16))
    x, *rest = problem.tensors(F32)

    def function(x: Tensor, *rest: Tensor) -> Tensor:
        return ROUTES[route](problem, x * 2, *rest) * 3

    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)):
        leaf = x.detach().clone().requires_grad_()
        y = call(leaf, *rest)
        (y * problem.upstream(F32)).sum().backward()
        results.append((y.detach(), leaf.grad))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_in_place_equals_out_of_place_bit_for_bit() -> None:
    for name, problem in CASES.items():
        for dtype in DTYPES:
            x, *rest = problem.tensors(dtype)
            expected = rope(x, *rest, interleaved=problem.interleaved)
            for route in ("rope_", "rope_ of a projection"):
                assert torch.equal(ROUTES[route](problem, x, *rest), expected), name


def test_in_place_writes_where_x_is() -> None:
    x, *rest = Problem().tensors(F32)
    expected = rope(x, *rest)
    wide = torch.zeros(2, 37, 3, 100)
    view = wide[..., 20:84].transpose(1, 2)
    view.copy_(x)
    assert rope_(view, *rest).data_ptr() == view.data_ptr()
    assert torch.equal(wide[..., 20:84].transpose(1, 2), expected)
    assert (wide[..., :20] == 0).all()
    assert (wide[..., 84:] == 0).all()


def test_autograd_knows_that_x_was_overwritten() -> None:
    problem = Problem((1, 1, 4, 8))
    x, *rest = problem.tensors(F32)
    base = x.requires_grad_() * 1
    squared = base.square()  # keeps base
    rope_(base, *rest)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad"):
        rope_(x, *rest)


def test_turning_back_gives_x() -> None:
    x, cos, sin, positions = Problem().tensors(F64)
    turned = torch.ops.longspan.rope(x, cos, sin, positions, False, False)
    # The tables are float32, so that cos^2 + sin^2 is 1 to float32.
    torch.testing.assert_close(
        torch.ops.longspan.rope(turned, cos, sin, positions, False, True), x, rtol=1e-6, atol=1e-6
    )


def test_scores_depend_on_distances_alone() -> None:
    q, k = torch.randn(2, 1, 1, 1, 64, dtype=F64)
    cos, sin = (table.double() for table in rope_table(10000.0 ** -(torch.arange(32) / 32), LENGTH))

    def score(query: int, key: int) -> float:
        return float((rope(q, cos, sin, torch.tensor([query])) * rope(k, cos, sin, torch.tensor([key]))).sum())

    assert score(17, 5) == pytest.approx(score(4012, 4000), rel=1e-5)


def test_tables_are_transformers_own() -> None:
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    parameters = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256, "rope_theta": 10000.0}
    for chosen in ({"rope_type": "default", "rope_theta": 10000.0}, parameters):
        config = LlamaConfig(hidden_size=64, num_attention_heads=2, rope_parameters=chosen)
        stock = LlamaRotaryEmbedding(config)
        q, k, positions = torch.randn(1, 2, 40, 32), torch.randn(1, 1, 40, 32), torch.arange(40)
        expected = apply_rotary_pos_emb(q, k, *stock(q, positions[None]))
        tables = rope_table(stock.inv_freq, 40, scaling=stock.attention_scaling)
        for ours, theirs in zip((rope(q, *tables, positions), rope(k, *tables, positions)), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_far_positions_are_exact_to_float32() -> None:
    inv_freq = torch.tensor([1.0, 0.37], dtype=F32)
    cos, _ = rope_table(inv_freq, 70000)
    exact = (torch.arange(70000).double()[:, None] * inv_freq.double()).cos()
    assert (cos.double() - exact).abs().max() < 6e-8


def test_nothing_but_the_tables_is_saved() -> None:
    problem = Problem((1, 4, 256, 64))
    x, *rest = problem.tensors(F32)
    rows = x.transpose(1, 2).reshape(1, 256, 256).requires_grad_()
    with measure() as m:
        y = rope_(rows.clone(), *rest, heads=4)
    assert m.end_bytes == rows.nbytes
    del y


def test_thread_count_changes_no_bit() -> None:
    x, *rest = Problem((2, 3, 301, 64)).tensors(F32)
    assert_threads_change_no_bit(lambda: {"y": rope(x, *rest)})


def test_strides_and_position_types() -> None:
    x, cos, sin, positions = Problem().tensors(F32)
    expected = reference(x, cos, sin, positions)
    for rows in (positions, positions[0], positions.int(), positions.expand(2, -1)):
        torch.testing.assert_close(rope(x.contiguous(), cos, sin, rows), expected)
    columns = x.transpose(2, 3).contiguous().transpose(2, 3)
    torch.testing.assert_close(rope(columns, cos, sin, positions), expected)


X, C, P = torch.zeros(2, 3, 5, 8), torch.zeros(10, 4), torch.arange(5)
BAD: dict[str, Callable[[], Any]] = {
    "rope: x has shape (3, 5, 8); it must be [B,H,T,D]": lambda: rope(X[0], C, C, P),
    "rope_: x has shape (3, 5, 8); with heads=3 it must be [B, T, 3 * D] or [T, 3 * D]": lambda: rope_(
        X[0], C, C, P, heads=3
    ),
    "rope: x is torch.int64; allowed: float32, float64, bfloat16": lambda: rope(X.long(), C, C, P),
    "rope: cos is torch.float64 (10, 4) on cpu; cos and sin must be torch.float32 [P,N] on cpu": lambda: rope(
        X, C.double(), C, P
    ),
    "rope: sin is torch.float32 (9, 4) on cpu; cos and sin must be torch.float32 [P,N] on cpu": lambda: rope(
        X, C, C[1:], P
    ),
    "rope: cos has 5 columns; a head of 8 has room for at most 4": lambda: rope(
        X, torch.zeros(10, 5), torch.zeros(10, 5), P
    ),
    "rope: positions is torch.float32; allowed: int64, int32": lambda: rope(X, C, C, P.float()),
    "rope: positions has shape (4,) on cpu; it must be (5,) or (1 or 2, 5) on cpu": lambda: rope(X, C, C, P[1:]),
    "rope: position 10 of token 1 in row 0 is out of range; the tables have rows 0 to 9": lambda: rope(
        X, C, C, torch.tensor([0, 10, 3, 4, 5])
    ),
    "rope_: position -1 of token 0 in row 0 is out of range; the tables have rows 0 to 9": lambda: rope_(
        X, C, C, P - 1
    ),
    "rope: sin requires grad but is a constant here; call sin.detach()": lambda: rope(
        X, C, C.clone().requires_grad_(), P
    ),
    "rope_: the last dimension of x must be contiguous; call x.contiguous() or use rope": lambda: rope_(
        torch.zeros(2, 3, 8, 5).transpose(2, 3), C, C, P
    ),
    "rope_table: inv_freq is torch.int64 with shape (4,); it must be floating point [N]": lambda: rope_table(
        torch.arange(4), 3
    ),
    "rope_table: length is -1; it must not be negative": lambda: rope_table(torch.ones(4), -1),
    "rope_table: scaling is 0.0; it must be finite and positive": lambda: rope_table(torch.ones(4), 3, scaling=0.0),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message


@pytest.mark.parametrize(("layout", "heads", "kv_heads"), [("blocks", 4, 2), ("heads", 3, 3)])
def test_packed_projections_rotate_queries_and_keys_alone(layout: str, heads: int, kv_heads: int) -> None:
    """One packed row of queries, keys and values: as rope of its parts, in both directions."""
    T, D = 7, 8
    cos, sin = rope_table(torch.rand(D // 2), 30)
    positions = torch.randperm(30)[:T]
    source = torch.randn(T, (heads + 2 * kv_heads) * D)

    def parts(x: Tensor) -> tuple[Tensor, ...]:
        if layout == "heads":
            return x.unflatten(1, (heads, 3, D)).unbind(2)
        return x.unflatten(1, (-1, D)).split([heads, kv_heads, kv_heads], 1)

    leaf, other = source.clone().requires_grad_(), source.clone().requires_grad_()
    packed = leaf * 1
    given = parts(rope_packed_(packed, cos, sin, positions, heads=heads, kv_heads=kv_heads, layout=layout))
    q, k, v = (x.transpose(0, 1)[None] for x in parts(other * 1))
    expected = tuple(x[0].transpose(0, 1) for x in (rope(q, cos, sin, positions), rope(k, cos, sin, positions), v))
    weights = [torch.randn_like(x) for x in expected]
    for ours, theirs in zip(given, expected, strict=True):
        assert torch.equal(ours, theirs)
    torch.autograd.backward(given, weights)
    torch.autograd.backward(expected, weights)
    assert leaf.grad is not None
    assert other.grad is not None
    assert torch.equal(leaf.grad, other.grad)


def test_rows_without_a_batch() -> None:
    """[T, heads * D] is rotated as the one row of a batch."""
    cos, sin = rope_table(torch.rand(4), 9)
    x = torch.randn(9, 24, requires_grad=True)
    rows = rope_(x * 1, cos, sin, torch.arange(9), heads=3)
    batch = rope_((x * 1)[None], cos, sin, torch.arange(9), heads=3)
    assert torch.equal(rows, batch[0])
    weights = torch.randn_like(rows)
    gradients = [torch.autograd.grad(y, x, w)[0] for y, w in ((rows, weights), (batch, weights[None]))]
    assert torch.equal(*gradients)


PACKED, SHAPE = torch.zeros(7, 32), "rope_packed_: x has shape (7, 32);"
BAD_PACKED: dict[str, Callable[[], Tensor]] = {
    "rope_packed_: layout is 'rows'; allowed: blocks, heads": lambda: rope_packed_(
        PACKED, C, C, P, heads=2, kv_heads=1, layout="rows"
    ),
    f"{SHAPE} with 4 heads and 2 key/value heads in layout 'heads' it must be [T, 8 * D]": lambda: rope_packed_(
        PACKED, C, C, P, heads=4, kv_heads=2, layout="heads"
    ),
    f"{SHAPE} with 3 heads and 1 key/value heads in layout 'blocks' it must be [T, 5 * D]": lambda: rope_packed_(
        PACKED, C, C, P, heads=3, kv_heads=1
    ),
}


@pytest.mark.parametrize("message", BAD_PACKED)
def test_bad_packed_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD_PACKED[message]()
    assert str(error.value) == message
