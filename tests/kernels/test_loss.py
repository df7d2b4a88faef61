"""The loss kernel without torch ops, against a float64 oracle in NumPy written from the definition."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from tests import machine
from tests.laws import BACKWARD, FORWARD, assert_error_bound

Arrays = dict[str, np.ndarray]
IGNORED = -100


def problem(T: int, C: int, V: int, dtype: type = np.float32, keep: float = 0.7, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, V, T)
    labels[rng.random(T) >= keep] = IGNORED
    return {
        "hidden": rng.standard_normal((T, C)).astype(dtype),
        "weight": rng.standard_normal((V, C)).astype(dtype),
        "bias": rng.standard_normal(V).astype(dtype),
        "row_weights": rng.standard_normal(T).astype(dtype),
        "labels": labels,
    }


def oracle(p: Arrays, kind: type, scale: float = 1.0, cap: float = 0.0) -> Arrays:
    """Losses and gradients of their sum, one row at a time, in `kind`."""
    hidden, weight, bias, row_weights = (p[n].astype(kind) for n in ("hidden", "weight", "bias", "row_weights"))
    out = {
        "losses": np.zeros(len(hidden), kind),
        "dhidden": np.zeros_like(hidden),
        "dweight": np.zeros_like(weight),
        "dbias": np.zeros_like(bias),
    }
    for t, label in enumerate(p["labels"]):
        if label == IGNORED:
            continue
        x = kind(scale) * (weight @ hidden[t] + bias)
        z = kind(cap) * np.tanh(x / kind(cap)) if cap else x
        e = np.exp(z - z.max())
        out["losses"][t] = row_weights[t] * (z.max() + np.log(e.sum()) - z[label])
        dz = e / e.sum()
        dz[label] -= 1
        dx = dz * (1 - (z / kind(cap)) ** 2) if cap else dz
        dx *= row_weights[t] * kind(scale)
        out["dhidden"][t] = dx @ weight
        out["dweight"] += np.outer(dx, hidden[t])
        out["dbias"] += dx
    out["total"] = out["losses"].sum()
    return out


def ours(p: Arrays, scale: float = 1.0, cap: float = 0.0, **options: Any) -> Arrays:
    options = {"need_dhidden": True, "need_dweight": True, "need_dbias": True, "threads": 2} | options
    out = kernels.linear_cross_entropy(
        p["hidden"],
        p["weight"],
        p["labels"],
        bias=p["bias"],
        row_weights=p["row_weights"],
        logit_scale=scale,
        logit_softcap=cap,
        **options,
    )
    return dict(zip(("total", "losses", "dhidden", "dweight", "dbias"), out, strict=True))


def assert_close(p: Arrays, got: Arrays, scale: float = 1.0, cap: float = 0.0) -> None:
    exact, rounded = oracle(p, np.float64, scale, cap), oracle(p, np.float32, scale, cap)
    assert (
        abs(got["total"] - got["losses"].astype(np.float64).sum())
        <= np.finfo(got["losses"].dtype).eps * abs(got["losses"]).sum()
    )
    for name, value in got.items():
        if name == "total":
            continue
        factor = FORWARD if name == "losses" else BACKWARD
        tensors = (torch.from_numpy(np.asarray(x)) for x in (value, rounded[name], exact[name]))
        assert_error_bound(name, *tensors, factor)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("scale", "cap"), [(1.0, 0.0), (0.25, 0.0), (1.0, 3.0), (2.0, 30.0)])
def test_every_instruction_set_keeps_the_error_bound(
    scale: float, cap: float, dtype: type, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    p = problem(37, 40, 1003, dtype)
    assert_close(p, ours(p, scale, cap, segment=16), scale, cap)


@pytest.mark.parametrize("V", [1, 2, 15, 16, 17, 33, 64, 2049])
def test_vocabularies_around_vectors(V: int) -> None:
    p = problem(70, 12, V)
    assert_close(p, ours(p))


def test_bfloat16_comes_as_bits() -> None:
    p = problem(50, 24, 301)
    half = {n: torch.from_numpy(p[n]).bfloat16() for n in ("hidden", "weight", "bias")}
    got = ours({**p, **half}, segment=16)
    widened = {**p, **{n: x.double().numpy() for n, x in half.items()}}
    exact = oracle(widened, np.float64)
    assert got["losses"].dtype == got["total"].dtype == np.float32
    # The rounded oracle: float32 arithmetic on the same inputs, its gradients rounded once.
    rounded = oracle(widened, np.float32)
    for name, value in got.items():
        x = torch.from_numpy(np.asarray(value))
        r = torch.from_numpy(np.asarray(rounded[name]))
        if name.startswith("d"):
            assert value.dtype == np.uint16
            x, r = torch.from_numpy(value.view(np.int16)).view(torch.bfloat16), r.bfloat16()
        assert_error_bound(name, x, r, torch.from_numpy(np.asarray(exact[name])), BACKWARD)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thread_count_changes_no_bit(dtype: type) -> None:
    p = problem(301, 48, 1500, dtype)
    one = ours(p, segment=100, threads=1)
    for threads in (2, 7):
        many = ours(p, segment=100, threads=threads)
        for name in one:
            assert np.array_equal(one[name], many[name]), name


@pytest.mark.parametrize("segment", [1, 7, 64, 10**6])
def test_segment_changes_only_rounding(segment: int) -> None:
    p = problem(65, 16, 200)
    got = ours(p, segment=segment)
    assert_close(p, got)
    whole = ours(p)
    # A row's own results do not depend on the rows beside it.
    for name in ("losses", "total", "dhidden"):
        assert np.array_equal(got[name], whole[name]), name


def test_ignored_rows_and_rows_of_weight_zero_are_never_read() -> None:
    p = problem(40, 16, 100)
    p["row_weights"][5:12] = 0
    skipped = (p["labels"] == IGNORED) | (p["row_weights"] == 0)
    clean = ours(p)
    p["hidden"][skipped] = np.nan
    got = ours(p)
    for name in clean:
        assert np.array_equal(clean[name], got[name]), name
    assert (got["dhidden"][skipped] == 0).all()
    assert (got["losses"][skipped] == 0).all()


@pytest.mark.parametrize("T", [0, 1, 33])
def test_nothing_to_count(T: int) -> None:
    p = problem(T, 8, 50, keep=0.0)
    got = ours(p)
    assert got["total"] == 0
    for name in ("losses", "dhidden", "dweight", "dbias"):
        assert (got[name] == 0).all(), name


def test_without_gradients_only_the_loss_is_computed() -> None:
    p = problem(20, 8, 50)
    got = ours(p, need_dhidden=False, need_dweight=False, need_dbias=False)
    assert got["dhidden"] is got["dweight"] is got["dbias"] is None
    assert np.array_equal(got["losses"], ours(p)["losses"])


def test_extreme_logits() -> None:
    hidden = np.array([[1e4], [-1e4], [0.0]], np.float32)
    weight = np.array([[1.0], [0.5], [-1.0]], np.float32)
    total, losses, dhidden, dweight, _ = kernels.linear_cross_entropy(
        hidden, weight, np.array([2, 2, 0]), need_dhidden=True, need_dweight=True
    )
    assert losses[0] == 2e4
    assert losses[1] == 0
    assert losses[2] == pytest.approx(np.log(3), rel=1e-6)
    assert dhidden[0, 0] == 2.0
    assert np.isfinite(dweight).all()
    assert total == pytest.approx(losses.sum())


def test_nan_reaches_its_own_row_only() -> None:
    p = problem(6, 8, 70, keep=1.0)
    p["hidden"][3, 2] = np.nan
    got = ours(p)
    assert np.isnan(got["losses"]).tolist() == [False] * 3 + [True] + [False] * 2
    assert np.isnan(got["dhidden"]).any(axis=1).tolist() == [False] * 3 + [True] + [False] * 2
    assert np.isnan(got["total"])


H, W, Y = np.zeros((3, 4), np.float32), np.zeros((10, 4), np.float32), np.zeros(3, np.int64)
BAD: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "linear_cross_entropy: label 10 at row 1 is out of range; allowed: 0 to 9 (V is 10), or ignore_index -100": (
        (H, W, np.array([0, 10, 3])),
        {},
    ),
    "linear_cross_entropy: label -1 at row 2 is out of range; allowed: 0 to 9 (V is 10), or ignore_index 7": (
        (H, W, np.array([7, 0, -1])),
        {"ignore_index": 7},
    ),
    "hidden is float32 and weight is float64; they must have one dtype": ((H, W.astype(np.float64), Y), {}),
    "hidden has width 4 and weight has width 3": ((H, np.zeros((10, 3), np.float32), Y), {}),
    "labels is int32 with 1 dimensions; it must be int64 with 1": ((H, W, Y.astype(np.int32)), {}),
    "labels has length 2; it must be contiguous with length 3": ((H, W, Y[:2]), {}),
    "labels is None; it must be int64 with length 3": ((H, W, None), {}),
    "bias has length 9; it must be contiguous with length 10": ((H, W, Y), {"bias": np.zeros(9, np.float32)}),
    "row_weights is float64 with 1 dimensions; it must be float32 with 1": ((H, W, Y), {"row_weights": np.zeros(3)}),
    "need_dbias is set but there is no bias": ((H, W, Y), {"need_dbias": True}),
    "segment is 0; it must be at least 1": ((H, W, Y), {"segment": 0}),
    "logit_softcap is -1.000000; it must be positive, or 0 for no cap": ((H, W, Y), {"logit_softcap": -1.0}),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    arguments, options = BAD[message]
    with pytest.raises(ValueError) as error:
        kernels.linear_cross_entropy(*arguments, **options)
    assert str(error.value) == message
