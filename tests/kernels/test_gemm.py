"""The library's own matrix product against NumPy in float64: every shape, transpose, dtype and instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan import kernels
from tests import machine
from tests.laws import FORWARD, assert_error_bound

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
DTYPES = ((F32, F32, F32), (F64, F64, F64), (BF16, BF16, F32), (F32, BF16, F32), (BF16, F32, BF16), (F32, F32, BF16))
# Around register blocks (6, 8, 16, 32), packed depth (384) and tiles (72, 96, 512).
LENGTHS = st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 72, 96, 97, 383, 384, 385, 512, 513]))


def matrix(rows: int, columns: int, dtype: torch.dtype, seed: int, padding: int = 0) -> Tensor:
    """[rows, columns] with `padding` unused elements behind each row, poisoned with NaN."""
    generator = torch.Generator().manual_seed(seed)
    storage = torch.full((rows, columns + padding), torch.nan, dtype=dtype)
    storage[:, :columns] = torch.randn(rows, columns, generator=generator, dtype=F64).to(dtype)
    return storage[:, :columns]


def check(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    beta: float = 0.0,
    rank: int = 0,
) -> None:
    """Multiplies into c and compares with float64, bounded by torch's error in the dtype that is summed in; with a
    second product of `rank`."""
    kind = F64 if c.dtype == F64 else F32
    m, n = c.shape
    p, q = matrix(m, rank, kind, 4, 2), matrix(*((n, rank) if transpose_b else (rank, n)), kind, 5, 3)

    def product(dtype: torch.dtype) -> Tensor:
        x, y = a.to(dtype), b.to(dtype)
        out = (x.T if transpose_a else x) @ (y.T if transpose_b else y)
        if rank:
            out = out + p.to(dtype) @ (q.T if transpose_b else q).to(dtype)
        return out + beta * before.to(dtype) if beta else out

    before = c.clone()
    exact, torchs = product(F64), product(F32).to(F32 if c.dtype == F64 else c.dtype)
    tail = {"p": p, "q": q} if rank else {}
    out = kernels.gemm(a, b, c, transpose_a=transpose_a, transpose_b=transpose_b, beta=beta, **tail, threads=2)
    assert out is c
    assert kind == torch.promote_types(c.dtype, F32)
    # One element may be a sum of few products, where torch happens to be exact: allow one rounding a step.
    inner = rank + (a.shape[0] if transpose_a else a.shape[1])
    slack = torch.finfo(F32).eps * inner**0.5 * (1 + exact.abs().max().item()) if c.numel() else 0.0
    if c.dtype == F64:
        assert ((c - exact).abs() <= slack * torch.finfo(F64).eps / torch.finfo(F32).eps).all()
        return
    assert_error_bound("c", c, torchs + slack * (torchs - exact).sign().to(torchs.dtype), exact, FORWARD)


@settings(max_examples=120)
@given(
    m=LENGTHS,
    n=LENGTHS,
    k=LENGTHS,
    transposes=st.tuples(st.booleans(), st.booleans()),
    dtypes=st.sampled_from(DTYPES),
    beta=st.sampled_from([0.0, 1.0, -0.5]),
    padding=st.sampled_from([0, 1, 7]),
    rank=st.sampled_from([0, 0, 1, 8, 33]),
)
def test_any_problem(
    m: int,
    n: int,
    k: int,
    transposes: tuple[bool, bool],
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    beta: float,
    padding: int,
    rank: int,
) -> None:
    ta, tb = transposes
    a = matrix(*((k, m) if ta else (m, k)), dtypes[0], 1, padding)
    b = matrix(*((n, k) if tb else (k, n)), dtypes[1], 2, padding)
    c = matrix(m, n, dtypes[2], 3, padding)
    check(a, b, c, transpose_a=ta, transpose_b=tb, beta=beta, rank=rank)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtypes", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2053, 33, 20), (7, 3100, 11), (97, 65, 1500), (6, 16, 3), (1, 1, 1)], ids=str)
def test_every_block_edge(
    shape: tuple[int, int, int],
    dtypes: tuple[torch.dtype, torch.dtype, torch.dtype],
    isa: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    m, n, k = shape
    for rank in (0, 9):
        x, y, c = matrix(m, k, dtypes[0], 1), matrix(n, k, dtypes[1], 2), matrix(m, n, dtypes[2], 3)
        check(x, y, c, transpose_b=True, beta=0.5, rank=rank)
        x, y, c = matrix(k, m, dtypes[0], 1, 3), matrix(k, n, dtypes[1], 2, 5), matrix(m, n, dtypes[2], 3, 1)
        check(x, y, c, transpose_a=True, rank=rank)


@pytest.mark.parametrize("padding", [0, 5])
def test_beta_zero_does_not_read_c_and_rows_keep_their_padding(padding: int) -> None:
    storage = np.full((10, 20 + padding), np.nan, np.float32)
    kernels.gemm(np.ones((10, 3), np.float32), np.ones((3, 20), np.float32), storage[:, :20])
    assert (storage[:, :20] == 3).all()
    assert np.isnan(storage[:, 20:]).all()
    empty = kernels.gemm(np.ones((4, 0), np.float32), np.ones((0, 5), np.float32))
    assert (empty == np.zeros((4, 5))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thread_count_changes_no_bit(dtype: type) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((333, 901)).astype(dtype), rng.standard_normal((901, 1030)).astype(dtype)
    p, q = rng.standard_normal((333, 8)).astype(dtype), rng.standard_normal((8, 1030)).astype(dtype)
    for tail in ({}, {"p": p, "q": q}):
        one = kernels.gemm(a, b, **tail, threads=1)
        assert one.dtype == dtype
        for threads in (2, 5):
            assert np.array_equal(one, kernels.gemm(a, b, **tail, threads=threads))


def test_an_element_does_not_depend_on_its_neighbours() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200, 500)).astype("float32"), rng.standard_normal((500, 700)).astype("float32")
    whole = kernels.gemm(a, b)
    assert np.array_equal(whole[123:140, 301:350], kernels.gemm(a[123:140], np.ascontiguousarray(b[:, 301:350])))


def test_a_tail_of_zeros_changes_no_bit() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((70, 500)).astype("float32"), rng.standard_normal((90, 500)).astype("float32")
    p, q = rng.standard_normal((70, 8)).astype("float32"), np.zeros((90, 8), np.float32)
    plain = kernels.gemm(a, b, transpose_b=True)
    assert np.array_equal(plain, kernels.gemm(a, b, transpose_b=True, p=p, q=q))


X = np.zeros((2, 3), np.float32)
P = np.zeros((2, 1), np.float32)
LONG = np.zeros((2, 385), np.float32)
BAD = {
    "p and q go together; give both or none": ((X, X), {"transpose_b": True, "p": P}),
    "p is [2, 1] and op(q) is [3, 2]; they must be [2, R] and [R, 2]": ((X, X), {"transpose_b": True, "p": P, "q": X}),
    "p is float64 with 2 dimensions; it must be float32 with 2": (
        (X, X),
        {"transpose_b": True, "p": P.astype(np.float64), "q": P},
    ),
    "gemm: the tail's rank is 385; it must be 0 to 384": ((X, X), {"transpose_b": True, "p": LONG, "q": LONG}),
    "op(a) is [2, 3] and op(b) is [2, 3]; the inner lengths must agree": ((X, X), {}),
    "c is [3, 3]; op(a) op(b) is [2, 2]": ((X, X, np.zeros((3, 3), np.float32)), {"transpose_b": True}),
    "a is float32 and b is float64; float64 does not mix with other dtypes": ((X, X.T.astype(np.float64).copy()), {}),
    "a is float32 and c is float64; float64 does not mix with other dtypes": (
        (X, X, np.zeros((2, 2))),
        {"transpose_b": True},
    ),
    "a is int32; allowed: float32, float64, bfloat16": ((X.astype(np.int32), X), {}),
    "b: the last dimension must be contiguous, its stride is 3": ((X, X.T), {}),
    "a has 1 dimensions; it needs 2": ((X[0], X), {}),
    "beta is 1.000000 but there is no c; give c or leave beta at 0": ((X, X), {"transpose_b": True, "beta": 1.0}),
    "threads is -1; it must be 0 (all cores), or 1 to 1024": ((X, X), {"transpose_b": True, "threads": -1}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    arguments, options = BAD[message]
    with pytest.raises(ValueError) as error:
        kernels.gemm(*arguments, **options)
    assert str(error.value) == message


def test_a_read_only_c_is_refused() -> None:
    c = np.zeros((2, 2), np.float32)
    c.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        kernels.gemm(X, X, c, transpose_b=True)
    assert (c == 0).all()
