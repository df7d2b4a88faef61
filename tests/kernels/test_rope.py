"""The rotary kernel without torch ops, against a float64 oracle in NumPy written from the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from tests import machine
from tests.laws import FORWARD, assert_error_bound


def problem(B: int, H: int, T: int, D: int, pairs: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(D)
    angles = rng.uniform(0, 6.3, (50, pairs))
    return {
        "x": rng.standard_normal((B, H, T, D)).astype(dtype),
        "cos": np.cos(angles).astype(dtype),
        "sin": np.sin(angles).astype(dtype),
        "positions": rng.integers(0, 50, (B, T)),
    }


def oracle(p: dict[str, np.ndarray], kind: type, interleaved: bool) -> np.ndarray:
    """Complex numbers times e^(i angle), one token at a time."""
    x, cos, sin = (p[n].astype(kind) for n in ("x", "cos", "sin"))
    out, pairs = x.copy(), cos.shape[1]
    columns = (slice(0, pairs), slice(pairs, 2 * pairs))
    if interleaved:
        columns = (slice(0, 2 * pairs, 2), slice(1, 2 * pairs, 2))
    for b, t in np.ndindex(p["positions"].shape):
        turn = cos[p["positions"][b, t]] + 1j * sin[p["positions"][b, t]]
        turned = (x[b, :, t, columns[0]] + 1j * x[b, :, t, columns[1]]) * turn
        out[b, :, t, columns[0]], out[b, :, t, columns[1]] = turned.real, turned.imag
    return out


def assert_close(p: dict[str, np.ndarray], got: np.ndarray, interleaved: bool = False) -> None:
    exact, rounded = oracle(p, np.float64, interleaved), oracle(p, np.float32, interleaved)
    assert_error_bound("y", torch.from_numpy(got), torch.from_numpy(rounded), torch.from_numpy(exact), FORWARD)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("interleaved", [False, True])
def test_every_instruction_set_keeps_the_error_bound(
    interleaved: bool, dtype: type, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    p = problem(2, 3, 41, 70, 29, dtype)
    assert_close(p, kernels.rope(**p, interleaved=interleaved, threads=2), interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("pairs", [0, 1, 2, 7, 8, 15, 16, 17, 33, 64])
def test_pairs_around_vectors(pairs: int, interleaved: bool) -> None:
    p = problem(1, 2, 5, 2 * pairs + 3, pairs)
    assert_close(p, kernels.rope(**p, interleaved=interleaved), interleaved)


def test_in_place_and_back() -> None:
    p = problem(2, 2, 33, 48, 20)
    expected, x = kernels.rope(**p), p["x"].copy()
    assert kernels.rope_(x, p["cos"], p["sin"], p["positions"]) is x
    assert np.array_equal(x, expected)
    kernels.rope_(x, p["cos"], p["sin"], p["positions"], inverse=True)
    np.testing.assert_allclose(x, p["x"], rtol=1e-5, atol=1e-6)


def test_bfloat16_comes_as_bits() -> None:
    p = problem(1, 2, 9, 32, 16)
    half = torch.from_numpy(p["x"]).bfloat16()
    y = kernels.rope(half, p["cos"], p["sin"], p["positions"])
    assert y.dtype == np.uint16
    exact = torch.from_numpy(oracle(p | {"x": half.double().numpy()}, np.float64, False))
    got = torch.from_numpy(y.view(np.int16)).view(torch.bfloat16)
    assert_error_bound("y", got, exact.bfloat16(), exact, FORWARD)


def test_strided_heads_and_results_that_are_given() -> None:
    p = problem(1, 2, 9, 32, 16)
    rows = np.ascontiguousarray(p["x"].transpose(0, 2, 1, 3))
    expected = kernels.rope(**p)
    y = np.empty_like(rows).transpose(0, 2, 1, 3)
    assert kernels.rope(rows.transpose(0, 2, 1, 3), p["cos"], p["sin"], p["positions"], y=y) is y
    assert np.array_equal(y, expected)


X, C, P = np.zeros((2, 1, 3, 8), np.float32), np.zeros((10, 4), np.float32), np.zeros((1, 3), np.int64)
READ_ONLY = X.copy()
READ_ONLY.flags.writeable = False
BAD: dict[str, Callable[[], Any]] = {
    "x has 3 dimensions; it needs 4": lambda: kernels.rope(X[0], C, C, P),
    "cos is float64 with 2 dimensions; it must be float32 with 2": lambda: kernels.rope(X, C.astype(float), C, P),
    "sin is float32 [9, 4]; it must be float32 [10, 4]": lambda: kernels.rope(X, C, C[1:], P),
    "cos has 5 columns; a head of 8 has room for at most 4": lambda: kernels.rope(
        X, np.zeros((2, 5), np.float32), np.zeros((2, 5), np.float32), P
    ),
    "positions is int32 with 2 dimensions; it must be int64 with 2": lambda: kernels.rope(X, C, C, P.astype(np.int32)),
    "positions has shape [1, 2]; it must be contiguous [1 or 2, 3]": lambda: kernels.rope(X, C, C, P[:, 1:]),
    "rope: position 10 of token 2 in row 1 is out of range; the tables have rows 0 to 9": lambda: kernels.rope(
        X, C, C, np.array([[0, 1, 2], [0, 0, 10]])
    ),
    "x is read-only; give an array that can be written": lambda: kernels.rope_(READ_ONLY, C, C, P),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
