"""The activation kernels without torch ops, against definitions in NumPy in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from tests import machine
from tests.laws import BACKWARD, FORWARD, assert_error_bound

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
_phi = np.vectorize(lambda x: 0.5 * math.erfc(-x / math.sqrt(2)))


def definition(x: np.ndarray, name: str) -> tuple[np.ndarray, np.ndarray]:
    """The activation and its derivative, both in the dtype of x."""
    if name == "silu":
        s = 1 / (1 + np.exp(-x))
        return x * s, s + x * s * (1 - s)
    if name == "gelu":
        phi = _phi(x).astype(x.dtype)
        return x * phi, phi + x * np.exp(-x * x / 2) / x.dtype.type(math.sqrt(2 * math.pi))
    if name == "gelu_tanh":
        c = x.dtype.type(math.sqrt(2 / math.pi))
        t = np.tanh(c * (x + x.dtype.type(0.044715) * x**3))
        return x * (1 + t) / 2, (1 + t) / 2 + x * (1 - t * t) / 2 * c * (1 + x.dtype.type(3 * 0.044715) * x * x)
    r = np.maximum(x, 0)
    return (r, (x > 0).astype(x.dtype)) if name == "relu" else (r * r, 2 * r)


def problem(T: int, F: int, dtype: type = np.float32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(F)
    return {n: (3 * rng.standard_normal((T, F))).astype(dtype) for n in ("gate", "up", "dy")}


def oracle(p: dict[str, np.ndarray], kind: type, name: str) -> dict[str, np.ndarray]:
    gate, up, dy = (p[n].astype(kind) for n in ("gate", "up", "dy"))
    value, slope = definition(gate, name)
    return {"y": value * up, "dgate": dy * up * slope, "dup": dy * value}


def assert_close(p: dict[str, np.ndarray], name: str) -> None:
    got = {"y": kernels.glu_fwd(p["gate"], p["up"], name, threads=2)}
    got["dgate"], got["dup"] = kernels.glu_bwd(p["dy"], p["gate"], p["up"], name, threads=2)
    exact, rounded = oracle(p, np.float64, name), oracle(p, np.float32, name)
    for key, value in got.items():
        tensors = (torch.from_numpy(np.asarray(x)) for x in (value, rounded[key], exact[key]))
        assert_error_bound(key, *tensors, FORWARD if key == "y" else BACKWARD)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_instruction_set_keeps_the_error_bound(
    name: str, dtype: type, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    assert_close(problem(13, 203, dtype), name)


@pytest.mark.parametrize("F", [1, 2, 7, 15, 16, 17, 33, 64, 65])
def test_columns_around_vectors(F: int) -> None:
    assert_close(problem(5, F), "silu")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_in_place(name: str) -> None:
    p = problem(6, 45)
    y = kernels.glu_fwd(p["gate"], p["up"], name)
    dgate, dup = kernels.glu_bwd(p["dy"], p["gate"], p["up"], name)
    over = p["gate"].copy()
    assert kernels.glu_fwd(over, p["up"], name, y=over) is over
    assert np.array_equal(over, y)
    gate, up = p["gate"].copy(), p["up"].copy()
    kernels.glu_bwd(p["dy"], gate, up, name, dgate=gate, dup=up)
    assert np.array_equal(gate, dgate)
    assert np.array_equal(up, dup)


def test_without_up() -> None:
    p = problem(4, 30)
    value, slope = definition(p["gate"].astype(np.float64), "gelu")
    np.testing.assert_allclose(kernels.glu_fwd(p["gate"], activation="gelu"), value, rtol=1e-5, atol=1e-6)
    dgate, dup = kernels.glu_bwd(p["dy"], p["gate"], activation="gelu")
    np.testing.assert_allclose(dgate, p["dy"] * slope, rtol=1e-5, atol=1e-6)
    assert dup is None


def test_bfloat16_comes_as_bits() -> None:
    gate, up = (torch.from_numpy(problem(4, 40)[n]).bfloat16() for n in ("gate", "up"))
    y = kernels.glu_fwd(gate, up)
    assert y.dtype == np.uint16
    exact = torch.nn.functional.silu(gate.double()) * up.double()
    assert_error_bound("y", torch.from_numpy(y.view(np.int16)).view(torch.bfloat16), exact.bfloat16(), exact, FORWARD)


X = np.zeros((3, 4), np.float32)
BAD: dict[str, Callable[[], Any]] = {
    "activation is 'tanh'; allowed: silu, gelu, gelu_tanh, relu, relu2": lambda: kernels.glu_fwd(X, X, "tanh"),
    "gate has 1 dimensions; it needs 2": lambda: kernels.glu_fwd(X[0], X),
    "up is float32 [2, 4]; it must be float32 [3, 4]": lambda: kernels.glu_fwd(X, X[1:]),
    "dy is float64 [3, 4]; it must be float32 [3, 4]": lambda: kernels.glu_bwd(X.astype(float), X, X),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
