"""Attention over lists against its three steps in float64, laws, transposed lists, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.ops import AttentionPattern, attention, list_attention, list_transpose, topl_indices
from longspan.ops.reference import list_attention as reference
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck
from tests.ops.attention_cases import inputs, run
from tests.ops.pq_cases import CHOICES

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
FACTORS = {"out": FORWARD, "lse": FORWARD, "dq": BACKWARD, "dk": BACKWARD, "dv": BACKWARD}


def random_lists(B: int, H: int, T: int, S: int, slots: int, seed: int = 0, share: float = 0.5) -> Tensor:
    """Some keys of each query, increasing; lists may be empty, or cut at their slots."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(B, H, T, S, generator=generator) < share * torch.rand(B, H, T, 1, generator=generator)
    numbers = torch.where(chosen, torch.arange(S), S).sort(-1).values
    numbers = torch.nn.functional.pad(numbers, (0, max(0, slots - S)), value=S)[..., :slots]
    return torch.where(numbers < S, numbers, -1).int().contiguous()


# (B, H, K, T, D), S, slots
SHAPES = {
    "plain": ((2, 4, 2, 30, 16), 30, 12),
    "nine heads of three": ((1, 9, 3, 70, 64), 70, 20),
    "odd D": ((1, 2, 1, 20, 13), 25, 9),
    "wide heads": ((1, 2, 2, 60, 200), 70, 25),
    "few queries": ((2, 4, 1, 5, 32), 90, 40),
    "no slots": ((1, 2, 2, 20, 8), 20, 0),
    "no queries": ((1, 2, 2, 0, 8), 20, 3),
    "no keys": ((1, 2, 2, 5, 8), 0, 3),
    "more slots than keys": ((1, 2, 1, 9, 8), 5, 8),
}


def problem(name: str, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], Tensor]:
    (B, H, K, T, D), S, slots = SHAPES[name]
    return inputs(B, H, K, T, D, S, dtype), random_lists(B, H, T, S, slots)


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("options", [{}, {"softcap": 2.0, "scale": 0.2}], ids=["plain", "soft-cap"])
@pytest.mark.parametrize("name", SHAPES)
def test_error_bound(name: str, options: dict[str, float], dtype: torch.dtype) -> None:
    tensors, lists = problem(name, dtype)
    found = run(list_attention, tensors, dtype, lists, return_lse=True, **options)
    exact = run(reference.list_attention, tensors, F64, lists, **options)
    rounded = run(reference.list_attention, tensors, F32 if dtype == F64 else dtype, lists, **options)
    for key, value in found.items():
        assert_error_bound(f"{name} {key}", value, rounded[key], exact[key], FACTORS[key])


def test_a_list_of_one_key_gives_its_value() -> None:
    """The softmax of one key is 1, whatever its score: dq and dk are rounding of terms that cancel."""
    q, k, v = (x.detach().requires_grad_() for x in inputs(1, 2, 2, 20, 8, 20, F32))
    lists = torch.arange(20, dtype=torch.int32).flip(0).reshape(1, 1, 20, 1).expand(1, 2, -1, -1).contiguous()
    out = list_attention(q, k, v, lists)
    assert isinstance(out, Tensor)
    torch.testing.assert_close(out, v.flip(2))
    dout = torch.randn(out.shape, generator=torch.Generator().manual_seed(0))
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), dout)
    torch.testing.assert_close(dv, dout.flip(2))
    assert max(float(dq.abs().max()), float(dk.abs().max())) < 1e-5


def test_gradcheck() -> None:
    tensors, lists = inputs(1, 2, 1, 6, 3, 7, F64), random_lists(1, 2, 6, 7, 4)
    leaves = tuple(x.contiguous().requires_grad_() for x in tensors)
    assert torch.autograd.gradcheck(lambda q, k, v: list_attention(q, k, v, lists), leaves)


@pytest.mark.parametrize("name", ["adc, window and sinks", "match", "documents", "a cache"])
def test_lists_and_masks_are_the_same_attention(name: str) -> None:
    choice = CHOICES[name]
    selection, _ = choice.select(F64)
    q, k, _ = choice.problem.tensors(F64)
    v = torch.randn(k.shape, dtype=F64)
    layout = choice.layout()
    lists = topl_indices(selection, choice.budget, q=None if selection.codebook is None else q, layout=layout)
    tensors = q, k, v
    one = run(list_attention, tensors, F64, lists, return_lse=True)
    pattern = AttentionPattern.selected(selection)
    other = run(lambda *t: attention(*t, pattern, layout=layout, return_lse=True), tensors, F64)
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-10, atol=1e-10)


def test_all_keys_are_dense_attention() -> None:
    tensors = inputs(1, 4, 2, 40, 32, dtype=F64)
    rows = torch.arange(40, dtype=torch.int32)
    lists = torch.where(rows <= rows[:, None], rows, -1).expand(1, 4, 40, 40).contiguous()
    torch.testing.assert_close(list_attention(*tensors, lists), attention(*tensors))


def test_an_empty_list_is_zero() -> None:
    tensors = inputs(1, 2, 1, 4, 8)
    lists = torch.full((1, 2, 4, 3), -1, dtype=torch.int32)
    found = run(list_attention, tensors, F32, lists, return_lse=True)
    assert torch.isneginf(found.pop("lse")).all()
    assert all(torch.equal(value, torch.zeros_like(value)) for value in found.values())


def test_threads_change_no_bit() -> None:
    tensors, lists = problem("nine heads of three", F32)
    assert_threads_change_no_bit(lambda: run(list_attention, tensors, F32, lists, return_lse=True))


# ---- transposed lists ------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(0, 20), st.integers(0, 25), st.integers(0, 9)),
    seed=st.integers(0, 9),
)
def test_transposed_lists(sizes: tuple[int, int, int, int, int], seed: int) -> None:
    B, H, T, S, slots = sizes
    lists = random_lists(B, H, T, S, slots, seed)
    starts, rows = list_transpose(lists, S)
    wanted_starts, wanted_rows = reference.list_transpose(lists, S)
    assert torch.equal(starts, wanted_starts)
    assert torch.equal(rows, wanted_rows)
    assert torch.equal(starts[..., -1], (lists >= 0).sum((-1, -2), dtype=torch.int32))


def test_transposed_twice_are_the_lists() -> None:
    lists = random_lists(1, 2, 25, 40, 12)
    starts, rows = list_transpose(lists, 40)
    most = int(starts.diff(dim=-1).max())
    back = torch.full((1, 2, 40, most), -1, dtype=torch.int32)
    for h in range(2):
        for j in range(40):
            own = rows[0, h, starts[0, h, j] : starts[0, h, j + 1]]
            back[0, h, j, : len(own)] = own
    starts, rows = list_transpose(back, 25)
    for h in range(2):
        for t in range(25):
            own = rows[0, h, starts[0, h, t] : starts[0, h, t + 1]]
            assert own.tolist() == [j for j in lists[0, h, t].tolist() if j >= 0]


def test_op_check_and_compile() -> None:
    tensors, lists = problem("plain", F32)
    leaves = tuple(x.contiguous().requires_grad_() for x in tensors)
    opcheck(torch.ops.longspan.list_attention_fwd.default, (*leaves, lists, 0.25, 0.0))
    opcheck(torch.ops.longspan.list_transpose.default, (lists, 30))
    out, lse = torch.ops.longspan.list_attention_fwd(*leaves, lists, 0.25, 0.0)
    starts, rows = list_transpose(lists, 30)
    given_ = (torch.ones_like(out), None, *leaves, out, lse, lists, starts, rows, 0.25, 0.0)
    given_ = tuple(x.detach() if isinstance(x, Tensor) else x for x in given_)
    opcheck(torch.ops.longspan.list_attention_bwd.default, given_)
    compiled = torch.compile(lambda *t: list_attention(*t, lists), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*tensors), list_attention(*tensors, lists))


Q, LISTS = torch.zeros(1, 2, 4, 8), torch.zeros(1, 2, 4, 2, dtype=torch.int32)
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: list_attention(Q[0], Q, Q, LISTS), r"q has shape \(2, 4, 8\)"),
    (lambda: list_attention(Q, Q.double(), Q, LISTS), "k is torch.float64"),
    (lambda: list_attention(Q, Q, Q[:, :1], LISTS), "do not fit"),
    (lambda: list_attention(Q, Q[..., :4], Q[..., :4], LISTS), "do not fit"),
    (lambda: list_attention(Q, Q.expand(1, 2, 4, 8)[:, :0], Q[:, :0], LISTS), "not a multiple of 0"),
    (lambda: list_attention(Q, Q, Q, LISTS.long()), "indices are torch.int64"),
    (lambda: list_attention(Q, Q, Q, LISTS[:, :1].contiguous()), "a list for each row of q"),
    (lambda: list_attention(Q, Q, Q, LISTS, softcap=-1), "softcap is -1"),
    (lambda: list_attention(Q, Q, Q, LISTS + 9), "slot 0 of list 0 is 9; numbers of 4 keys must increase"),
    (lambda: list_attention(Q, Q, Q, LISTS), "slot 1 of list 0 is 0; numbers of 4 keys must increase"),
    (lambda: list_transpose(LISTS - 2, 4), "slot 0 of list 0 is -2"),
    (lambda: list_transpose(LISTS, -1), "keys is -1"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
