"""The row-norm kernels without torch ops, against a float64 oracle in NumPy written from the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from tests import machine
from tests.laws import BACKWARD, FORWARD, assert_error_bound

Arrays = dict[str, np.ndarray]
EPS, OFFSET = 1e-4, 0.5


def problem(T: int, C: int, dtype: type = np.float32, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    rows = {name: rng.standard_normal((T, C)).astype(dtype) for name in ("x", "residual", "dy", "dsum")}
    return rows | {name: rng.standard_normal(C).astype(dtype) for name in ("weight", "bias")}


def oracle(p: Arrays, kind: type, centered: bool) -> Arrays:
    """One row at a time, in `kind`."""
    s = (p["x"] + p["residual"]).astype(kind)
    weight, bias, dy, dsum = (p[n].astype(kind) for n in ("weight", "bias", "dy", "dsum"))
    out = {n: np.zeros_like(s) for n in ("y", "dx")} | {"dweight": np.zeros_like(weight), "dbias": np.zeros_like(bias)}
    for t, row in enumerate(s):
        mean = row.mean() if centered else kind(0)
        rstd = 1 / np.sqrt(((row - mean) ** 2).mean() + kind(EPS))
        normed, g = (row - mean) * rstd, dy[t] * (weight + kind(OFFSET))
        out["y"][t] = normed * (weight + kind(OFFSET)) + bias
        out["dx"][t] = rstd * (g - (g * normed).mean() * normed - (g.mean() if centered else 0)) + dsum[t]
        out["dweight"] += dy[t] * normed
        out["dbias"] += dy[t]
    return out


def ours(p: Arrays, centered: bool, threads: int = 2) -> Arrays:
    options: dict[str, Any] = {"centered": centered, "weight_offset": OFFSET, "threads": threads}
    y, total, rstd, mean = kernels.norm_fwd(p["x"], p["weight"], p["bias"], residual=p["residual"], eps=EPS, **options)
    assert (mean is not None) == centered
    assert np.array_equal(total, p["x"] + p["residual"])
    dx, dweight, dbias = kernels.norm_bwd(
        p["dy"], total, rstd, mean, p["weight"], dsum=p["dsum"], need_dweight=True, need_dbias=True, **options
    )
    return {"y": y, "dx": dx, "dweight": dweight, "dbias": dbias}


def assert_close(p: Arrays, got: Arrays, centered: bool) -> None:
    exact, rounded = oracle(p, np.float64, centered), oracle(p, np.float32, centered)
    for name, value in got.items():
        tensors = (torch.from_numpy(np.asarray(x)) for x in (value, rounded[name], exact[name]))
        assert_error_bound(name, *tensors, FORWARD if name == "y" else BACKWARD)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("centered", [False, True])
def test_every_instruction_set_keeps_the_error_bound(
    centered: bool, dtype: type, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    p = problem(37, 203, dtype)
    assert_close(p, ours(p, centered), centered)


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("C", [1, 2, 15, 16, 17, 33, 64, 65, 130])
def test_columns_around_vectors(C: int, centered: bool) -> None:
    p = problem(19, C)
    assert_close(p, ours(p, centered), centered)


@pytest.mark.parametrize("wide", [False, True])
def test_bfloat16_comes_as_bits(wide: bool) -> None:
    p = problem(20, 48)
    half = {n: torch.from_numpy(x).bfloat16() for n, x in p.items()}
    weight = torch.from_numpy(p["weight"]) if wide else half["weight"]
    y, _, rstd, _ = kernels.norm_fwd(half["x"], weight, eps=EPS)
    assert (y.dtype, rstd.dtype) == (np.uint16, np.float32)
    x = half["x"].double()
    exact = x * (x.square().mean(1, keepdim=True) + EPS).rsqrt() * weight.double()
    got = torch.from_numpy(y.view(np.int16)).view(torch.bfloat16)
    assert_error_bound("y", got, exact.bfloat16(), exact, FORWARD)
    dx, dweight, _ = kernels.norm_bwd(half["dy"], half["x"], rstd, None, weight, need_dweight=True)
    assert (dx.dtype, dweight.dtype) == (np.uint16, np.float32 if wide else np.uint16)


def test_results_may_be_given_and_the_sum_may_be_the_input() -> None:
    p = problem(6, 40)
    plain = kernels.norm_fwd(p["x"], p["weight"], residual=p["residual"])
    y, x = np.empty_like(p["x"]), p["x"].copy()
    given = kernels.norm_fwd(x, p["weight"], residual=p["residual"], y=y, sum=x)
    assert given[0] is y
    assert given[1] is x
    assert np.array_equal(y, plain[0])
    assert np.array_equal(x, plain[1])
    dsum = p["dsum"].copy()
    expected = kernels.norm_bwd(p["dy"], x, plain[2], None, p["weight"], dsum=p["dsum"])[0]
    assert np.array_equal(kernels.norm_bwd(p["dy"], x, plain[2], None, p["weight"], dsum=dsum, dx=dsum)[0], expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thread_count_changes_no_bit(dtype: type) -> None:
    p = problem(1301, 33, dtype)
    one = ours(p, True, threads=1)
    for threads in (2, 7):
        many = ours(p, True, threads=threads)
        assert all(np.array_equal(one[name], many[name]) for name in one)


def test_strided_rows() -> None:
    wide = np.random.default_rng(0).standard_normal((7, 90)).astype(np.float32)
    x = wide[:, 5:69]
    assert np.array_equal(kernels.norm_fwd(x)[0], kernels.norm_fwd(x.copy())[0])


X, W = np.zeros((3, 4), np.float32), np.zeros(4, np.float32)
R = np.zeros(3, np.float32)
BAD: dict[str, Callable[[], Any]] = {
    "x has 1 dimensions; it needs 2": lambda: kernels.norm_fwd(W),
    "weight is float32 [3]; it must be float32 [4]": lambda: kernels.norm_fwd(X, R),
    "weight is float64 [4]; it must be float32 [4]": lambda: kernels.norm_fwd(X, W.astype(np.float64)),
    "residual is float32 [4]; it must be float32 [3, 4]": lambda: kernels.norm_fwd(X, residual=W),
    "eps is -1.000000; it must not be negative": lambda: kernels.norm_fwd(X, eps=-1),
    "mean is float32 [4]; it must be float32 [3]": lambda: kernels.norm_bwd(X, X, R, W, centered=True),
    "rstd must be contiguous": lambda: kernels.norm_fwd(X, rstd=np.zeros(6, np.float32)[::2]),
    "weight must be contiguous": lambda: kernels.norm_fwd(X, np.zeros(8, np.float32)[::2]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
