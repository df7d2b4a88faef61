"""The CUDA row norms in the CPU emulation: right, the same in every schedule, and without a report; the PTX as well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cuda import simt
from tests.cuda.arrays import NAMES, bits, tensor
from tests.cuda.replay import replay
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.norm_cases import CASES as OPS
from tests.ops.norm_cases import F32, F64, Problem

DTYPES = (torch.bfloat16, torch.float16, F32)
CASES = OPS | {
    "more units than threads": Problem(T=2, C=2056, residual=True),
    "more chunks than rows of one": Problem(T=9, C=16, kind="layer", bias=True, residual=True),
}
Run = dict[str, Any]


def given(problem: Problem, dtype: torch.dtype, padding: int) -> tuple[Run, dict[str, Tensor]]:
    """What both entries take; rows have `padding` further elements."""
    tensors = problem.tensors(dtype)
    vector = next((tensors[n].dtype for n in ("weight", "bias") if n in tensors), dtype)
    shared = {"dtype": NAMES[dtype], "weight_dtype": NAMES[vector], "C": problem.C, "centered": problem.centered}
    shared |= {"weight_offset": problem.weight_offset, "eps": problem.eps}
    return shared | {n: bits(x, padding if x.dim() == 2 else 0) for n, x in tensors.items()}, tensors


def run(
    problem: Problem,
    dtype: torch.dtype,
    padding: int = 0,
    seed: int = 0,
    build: simt.Build = "plain",
    mutant: int = 0,
    ptx: bool = False,
) -> tuple[dict[str, Tensor], list[simt.Report]]:
    """Both directions; the backward is given the forward's own results."""
    shared, tensors = given(problem, dtype, padding)
    reports: list[simt.Report] = []

    def call(name: str, arguments: Run, source: str) -> dict[str, np.ndarray]:
        result = simt.run(name, arguments, build=build, seed=seed, mutant=mutant, record=ptx)
        reports.extend(result.reports)
        assert padding or mutant or not sum(result.unwritten.values()), "some elements were never written"
        if ptx:
            return replay(result, [source], seed).outputs
        return result.outputs

    forward = call("norm_fwd", shared, "norm/fwd.cu")
    dy, dsum = problem.upstream(dtype)
    normed = forward["sum"] if problem.residual else shared["x"]
    more: Run = {"dy": bits(dy, padding), "x": normed, "rstd": forward["rstd"], "mean": forward.get("mean")}
    more |= {"dsum": bits(dsum, padding) if problem.residual else None}
    more |= {"dweight": problem.weight, "dbias": problem.bias}
    backward = call("norm_bwd", shared | more, "norm/bwd.cu")
    values = {n: tensor(forward[n], dtype, problem.C) for n in ("y", "sum") if n in forward}
    values["dx"] = tensor(backward["dx"], dtype, problem.C)
    for name in ("weight", "bias"):
        if f"d{name}" in backward:
            values[f"d{name}"] = tensor(backward[f"d{name}"], tensors[name].dtype, problem.C)
    return values, reports


def assert_correct(problem: Problem, dtype: torch.dtype, values: dict[str, Tensor], label: str) -> None:
    tensors = problem.tensors(dtype)
    exact, rounded = problem.oracle(tensors, F64), problem.oracle(tensors, dtype)
    assert values.keys() == exact.keys()
    for name, value in values.items():
        factor = FORWARD if name in ("y", "sum") else BACKWARD
        assert_error_bound(f"{label} {name}", value, rounded[name].to(value.dtype), exact[name], factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    for padding in (0, 1):  # rows on 16 bytes, and not
        first, reports = run(CASES[name], dtype, padding)
        assert not reports, "\n".join(map(str, reports))
        assert_correct(CASES[name], dtype, first, name)
        for seed in (1, 2, 3) if not padding else (1,):
            other, reports = run(CASES[name], dtype, padding, seed)
            assert not reports, "\n".join(map(str, reports))
            assert all(torch.equal(first[n], other[n]) for n in first), f"seed {seed} changes bits"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_race_no_bound_no_uninitialised_read(name: str, dtype: torch.dtype) -> None:
    for padding in (0, 3):
        _, reports = run(CASES[name], dtype, padding, seed=1, build="hooks")
        assert not reports, "\n".join(map(str, reports))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["layer residual", "odd columns", "float32 weight", "offset"])
def test_ptx(name: str, dtype: torch.dtype) -> None:
    for padding in (0, 1):
        values, _ = run(CASES[name], dtype, padding, seed=1, ptx=True)
        assert_correct(CASES[name], dtype, values, name)


# number: what is wrong, and a case that shows it. The numbers stand at `simt::mutant` in csrc/kernels/norm.
MUTANTS = {
    60: ("no barrier before the warps' parts are read", "rms"),
    61: ("no barrier before the parts are overwritten", "layer"),
    62: ("the residual is left out of the sum", "rms residual"),
    63: ("elements past the row's end count in the variance", "odd columns"),
    64: ("sums of other lanes are exchanged wrongly", "wide"),
    65: ("the weight's offset is left out", "offset"),
    66: ("a row off 16 bytes is written by units", "odd columns"),
    67: ("eps is left out", "large eps"),
    68: ("the bias is left out", "layer"),
    69: ("all rows' statistics go to the first row's place", "rms"),
    70: ("the last chunk has rows past the end", "rms"),
    71: ("the mean is left out of the gradient", "far mean"),
    72: ("parts of an earlier run are added to", "rms"),
    73: ("the gradient's mean is not taken off", "layer"),
    74: ("the gradient of the sum is left out", "layer residual"),
    75: ("a row off 16 bytes is written by units", "odd columns"),
    76: ("columns past the end are summed", "rms"),
    77: ("the first chunk's part is left out", "rms"),
    78: ("the weight is left out of the gradient", "rms"),
    79: ("the row's projection is not taken off", "rms"),
}


@pytest.mark.mutants("norm")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name = MUTANTS[mutant]
    values, reports = run(CASES[name], F32, seed=1, build="hooks", mutant=mutant)
    if not reports:
        with pytest.raises(AssertionError):
            assert_correct(CASES[name], F32, values, what)


def test_what_the_kernels_do_not_take() -> None:
    x = np.zeros((1, 8))
    with pytest.raises(RuntimeError, match="norms on CUDA take float32, float16 and bfloat16, not float64"):
        simt.run("norm_fwd", {"x": x, "C": 8, "dtype": "float64"})
    long = np.zeros((1, 60000), np.float32)
    with pytest.raises(RuntimeError, match="norms on CUDA take rows of at most 232448 bytes, not 240000"):
        simt.run("norm_fwd", {"x": long, "C": 60000, "dtype": "float32"})


def test_sums_over_a_thousand_chunks() -> None:
    """dweight and dbias of many rows are as accurate as torch's: a thousand parts of a column are added in double."""
    problem = Problem(T=8200, C=4, kind="layer", bias=True)
    values, reports = run(problem, F32)
    assert not reports
    assert_correct(problem, F32, values, "many chunks")
