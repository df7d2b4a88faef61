"""The kernels of linear maps with adapters without torch ops, against a float64 oracle in NumPy from the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from tests import machine
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.lora_cases import mask_of

Arrays = dict[str, np.ndarray]
EPS, OFFSET, SCALING, P, SEED = 1e-3, 0.5, 0.75, 0.2, 5 * 2**40 + 3
VECTORS = ("norm_weight", "norm_bias")


def problem(T: int, C: int, N: int, R: int, dtype: type = np.float32, norm: str = "none") -> Arrays:
    """Every array of a call; a rank of 0 is no adapter."""
    rng = np.random.default_rng(T + C)

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(dtype)

    p = {
        "x": draw(T, C),
        "weight": draw(N, C, scale=C**-0.5),
        "bias": draw(N),
        "residual": draw(T, N),
        "dy": draw(T, N),
    }
    if R:
        p |= {"lora_a": draw(R, C, scale=C**-0.5), "lora_b": draw(N, R, scale=R**-0.5)}
    return p if norm == "none" else p | {n: draw(C) for n in VECTORS}


def oracle(p: Arrays, kind: type, norm: str, dropout: float) -> Arrays:
    """One row at a time, in `kind`."""
    a = {name: x.astype(kind) for name, x in p.items()}
    x, w, weight = a["x"], a["weight"], a.get("norm_weight", 0) + kind(OFFSET)
    out = {n: np.zeros_like(a[n[1:]]) for n in ("dx", "dweight")} | {"y": np.zeros_like(a["dy"])}
    out |= {f"d{n}": np.zeros_like(a[n]) for n in ("bias", "lora_a", "lora_b", *VECTORS) if n in a}
    mask = mask_of(SEED, *x.shape, dropout).astype(kind)
    for t, row in enumerate(x):
        mean = row.mean() if norm == "layer" else kind(0)
        rstd = 1 / np.sqrt(((row - mean) ** 2).mean() + kind(EPS))
        n = (row - mean) * rstd
        z = row if norm == "none" else n * weight + a["norm_bias"]
        dy, seen = a["dy"][t], z * mask[t]
        out["y"][t] = w @ z + a["bias"] + a["residual"][t]
        dz = dy @ w
        if "lora_a" in a:
            s, ds = a["lora_a"] @ seen, kind(SCALING) * (dy @ a["lora_b"])
            out["y"][t] += kind(SCALING) * (a["lora_b"] @ s)
            out["dlora_a"] += np.outer(ds, seen)
            out["dlora_b"] += kind(SCALING) * np.outer(dy, s)
            dz = dz + (ds @ a["lora_a"]) * mask[t]
        out["dweight"] += np.outer(dy, z)
        out["dbias"] += dy
        out["dx"][t] = dz
        if norm != "none":
            g = dz * weight
            out["dx"][t] = rstd * (g - (g * n).mean() * n - (g.mean() if norm == "layer" else 0))
            out["dnorm_weight"] += dz * n
            out["dnorm_bias"] += dz
    return out


def options(p: Arrays, norm: str, dropout: float, threads: int = 2) -> dict[str, Any]:
    given: dict[str, Any] = {"scaling": SCALING, "norm": norm, "eps": EPS, "weight_offset": OFFSET, "threads": threads}
    given |= {n: p[n] for n in VECTORS if n in p}
    return given | ({"dropout_p": dropout, "seed": np.array([SEED])} if dropout else {})


def ours(p: Arrays, norm: str, dropout: float, threads: int = 2) -> Arrays:
    given = options(p, norm, dropout, threads)
    adapter = [p.get("lora_a"), p.get("lora_b")]
    y, s, rstd, mean = kernels.lora_linear_fwd(
        p["x"], p["weight"], p["bias"], *adapter, residual=p["residual"], **given
    )
    assert (s is not None) == ("lora_a" in p)
    assert (rstd is not None, mean is not None) == (norm != "none", norm == "layer")
    wanted = ["dx", "dweight", "dbias", *(f"d{n}" for n in ("lora_a", "lora_b", *VECTORS) if n in p)]
    got = kernels.lora_linear_bwd(
        p["dy"], p["x"], p["weight"], *adapter, s, rstd=rstd, mean=mean, wanted=wanted, **given
    )
    assert list(got) == wanted
    return {"y": y, **got}


def assert_close(p: Arrays, norm: str, dropout: float) -> None:
    got, exact = ours(p, norm, dropout), oracle(p, np.float64, norm, dropout)
    rounded = oracle(p, np.float32, norm, dropout)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        tensors = (torch.from_numpy(np.asarray(x)) for x in (value, rounded[name], exact[name]))
        assert_error_bound(name, *tensors, FORWARD if name == "y" else BACKWARD)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dropout", [0.0, P])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_every_instruction_set_keeps_the_error_bound(
    norm: str, dropout: float, dtype: type, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    assert_close(problem(71, 203, 45, 9, dtype, norm), norm, dropout)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_instruction_set_makes_the_same_mask(isa: str, dtype: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    x, nothing, one = np.ones((67, 35), dtype), np.zeros((35, 35), dtype), np.eye(35, dtype=dtype)
    y = kernels.lora_linear_fwd(x, nothing, None, one, one, dropout_p=P, seed=np.array([SEED]))[0]
    assert np.array_equal(y, mask_of(SEED, 67, 35, P).astype(dtype))


@pytest.mark.parametrize("C", [1, 2, 15, 16, 17, 33, 64, 65, 130])
def test_columns_around_vectors(C: int) -> None:
    assert_close(problem(19, C, 21, 3, norm="layer"), "layer", P)


@pytest.mark.parametrize("N", [1, 15, 16, 17, 48, 49])
@pytest.mark.parametrize("R", [0, 1, 7, 8, 15, 16, 17, 33])
def test_ranks_and_outputs_around_vectors(R: int, N: int) -> None:
    assert_close(problem(13, 20, N, R), "none", 0.0)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("norm", ["none", "rms", "layer"])
def test_bfloat16_comes_as_bits(norm: str, wide: bool) -> None:
    p = problem(20, 48, 24, 4, norm=norm)
    alone = ("lora_a", "lora_b", *VECTORS) if wide else ()
    given = {n: torch.from_numpy(x) if n in alone else torch.from_numpy(x).bfloat16() for n, x in p.items()}
    kept = options(given, norm, P)  # type: ignore[arg-type]
    y, s, rstd, mean = kernels.lora_linear_fwd(
        *(given[n] for n in ("x", "weight", "bias", "lora_a", "lora_b")), residual=given["residual"], **kept
    )
    assert (y.dtype, s.dtype) == (np.uint16, np.float32)
    assert rstd is None or rstd.dtype == np.float32
    wanted = ["dx", "dlora_a", "dlora_b", *(f"d{n}" for n in VECTORS if n in p)]
    got = kernels.lora_linear_bwd(
        *(given[n] for n in ("dy", "x", "weight", "lora_a", "lora_b")), s, rstd=rstd, mean=mean, wanted=wanted, **kept
    )
    exact = oracle({n: x.double().numpy() for n, x in given.items()}, np.float64, norm, P)
    for name, value in {"y": y, **got}.items():
        narrow = name[1:] not in alone
        assert value.dtype == (np.uint16 if narrow else np.float32)
        found = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16) if narrow else torch.from_numpy(value)
        error = (found.double() - torch.from_numpy(exact[name])).abs().max()
        assert error <= 2**-7 * max(1.0, float(np.abs(exact[name]).max())), name


def test_results_may_be_given() -> None:
    p = problem(6, 40, 10, 3, norm="layer")
    given, adapter = options(p, "layer", P), (p["lora_a"], p["lora_b"])
    plain = kernels.lora_linear_fwd(p["x"], p["weight"], None, *adapter, **given)
    mine = [np.full_like(x, np.nan) for x in plain]
    found = kernels.lora_linear_fwd(
        p["x"], p["weight"], None, *adapter, **given, **dict(zip(("y", "s", "rstd", "mean"), mine, strict=True))
    )
    for one, other, given_array in zip(plain, found, mine, strict=True):
        assert other is given_array
        assert np.array_equal(one, other)
    wanted = ["dlora_b", "dx", "dnorm_weight", "dlora_a", "dbias", "dweight", "dnorm_bias"]
    saved = {"s": plain[1], "rstd": plain[2], "mean": plain[3], "wanted": wanted}
    expected = kernels.lora_linear_bwd(p["dy"], p["x"], p["weight"], *adapter, **saved, **given)
    out = {name: np.full_like(x, np.nan) for name, x in expected.items()}
    got = kernels.lora_linear_bwd(p["dy"], p["x"], p["weight"], *adapter, **saved, **given, out=out)
    assert list(got) == wanted
    for name in wanted:
        assert got[name] is out[name]
        assert np.array_equal(got[name], expected[name])
        alone = kernels.lora_linear_bwd(p["dy"], p["x"], p["weight"], *adapter, **{**saved, "wanted": [name]}, **given)
        assert list(alone) == [name]
        assert np.array_equal(alone[name], expected[name])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("norm", "dropout"), [("none", 0.0), ("none", P), ("layer", P)])
def test_thread_count_changes_no_bit(norm: str, dropout: float, dtype: type) -> None:
    p = problem(2101, 33, 20, 5, dtype, norm)
    one = ours(p, norm, dropout, threads=1)
    for threads in (2, 7):
        many = ours(p, norm, dropout, threads=threads)
        assert all(np.array_equal(one[name], many[name]) for name in one)


def test_strided_rows() -> None:
    p = problem(30, 64, 17, 5)
    expected = ours(p, "none", P)
    for name in ("x", "weight", "lora_a", "lora_b", "residual", "dy"):
        wide = np.full((p[name].shape[0], p[name].shape[1] + 26), np.nan, np.float32)
        wide[:, 5:-21] = p[name]
        got = ours(p | {name: wide[:, 5:-21]}, "none", P)
        assert all(np.array_equal(expected[n], got[n]) for n in expected), name


def test_no_rows() -> None:
    p = problem(0, 8, 6, 2, norm="layer")
    got = ours(p, "layer", P)
    assert got["y"].shape == (0, 6)
    assert all((x == 0).all() for x in got.values())


X, W, A, B = (np.zeros(shape, np.float32) for shape in ((3, 4), (5, 4), (2, 4), (5, 2)))
Y, S, V = (np.zeros(shape, np.float32) for shape in ((3, 5), (3, 2), 4))
fwd, bwd = kernels.lora_linear_fwd, kernels.lora_linear_bwd
BAD: dict[str, Callable[[], Any]] = {
    "x has 1 dimensions; it needs 2": lambda: fwd(V, W),
    "weight has 1 dimensions; it needs 2": lambda: fwd(X, V),
    "weight is float32 [5, 3]; it must be float32 [5, 4]": lambda: fwd(X, W[:, :3]),
    "weight is float64 [5, 4]; it must be float32 [5, 4]": lambda: fwd(X, W.astype(np.float64)),
    "bias is float32 [4]; it must be float32 [5]": lambda: fwd(X, W, V),
    "bias must be contiguous": lambda: fwd(X, W, np.zeros(10, np.float32)[::2]),
    "lora_a and lora_b go together; give both or none": lambda: fwd(X, W, None, A),
    "lora_a is float32 [2, 3]; it must be float32 [2, 4]": lambda: fwd(X, W, None, A[:, :3], B),
    "lora_b is float32 [5, 1]; it must be float32 [5, 2]": lambda: fwd(X, W, None, A, B[:, :1]),
    "lora_b is float64 [5, 2]; it must be float32 [5, 2]": lambda: fwd(X, W, None, A, B.astype(np.float64)),
    "lora_linear: the rank is 257; allowed: at most 256": lambda: fwd(
        X, W, None, np.zeros((257, 4), np.float32), np.zeros((5, 257), np.float32)
    ),
    "x is float16; allowed: float32, float64, bfloat16": lambda: fwd(X.astype(np.float16), W.astype(np.float16)),
    "norm is 'batch'; allowed: none, rms, layer": lambda: fwd(X, W, norm="batch"),
    "norm_weight is float32 [3]; it must be float32 [4]": lambda: fwd(X, W, norm="rms", norm_weight=V[:3]),
    "norm_bias is float64 [4]; it must be float32 [4]": lambda: fwd(
        X, W, norm="layer", norm_weight=V, norm_bias=V.astype(np.float64)
    ),
    "eps is -1.000000; it must not be negative": lambda: fwd(X, W, norm="rms", eps=-1),
    "dropout_p is 1.000000; it must be at least 0 and below 1": lambda: fwd(X, W, dropout_p=1.0),
    "dropout needs seed, an int64 array of one element": lambda: fwd(X, W, None, A, B, dropout_p=0.5),
    "seed has 2 elements; it needs 1": lambda: fwd(X, W, None, A, B, dropout_p=0.5, seed=np.zeros(2, np.int64)),
    "residual is float32 [3, 4]; it must be float32 [3, 5]": lambda: fwd(X, W, residual=X),
    "y is float32 [3, 4]; it must be float32 [3, 5]": lambda: fwd(X, W, y=X),
    "s must be contiguous": lambda: fwd(X, W, None, A, B, s=np.zeros((3, 4), np.float32)[:, :2]),
    "rstd is float32 [4]; it must be float32 [3]": lambda: fwd(X, W, norm="rms", rstd=V),
    "dy is float32 [3, 4]; it must be float32 [3, 5]": lambda: bwd(X, X, W),
    "s is float32 [3, 5]; it must be float32 [3, 2]": lambda: bwd(Y, X, W, A, B, Y),
    "mean is float32 [4]; it must be float32 [3]": lambda: bwd(Y, X, W, norm="layer", rstd=V[:3], mean=V),
    "wanted has 'dlora_a'; allowed: dx, dweight, dbias, and with an adapter or a norm's vectors dlora_a, dlora_b, "
    "dnorm_weight, dnorm_bias": lambda: bwd(Y, X, W),
    "wanted has 'dresidual'; allowed: dx, dweight, dbias, and with an adapter or a norm's vectors dlora_a, dlora_b, "
    "dnorm_weight, dnorm_bias": lambda: bwd(Y, X, W, wanted=["dresidual"]),
    "dx is float32 [3, 5]; it must be float32 [3, 4]": lambda: bwd(Y, X, W, wanted=["dx"], out={"dx": Y}),
    "dlora_b must be contiguous": lambda: bwd(
        Y, X, W, A, B, S, wanted=["dlora_b"], out={"dlora_b": np.zeros((5, 4), np.float32)[:, :2]}
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
