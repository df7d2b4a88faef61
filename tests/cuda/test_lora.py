"""CUDA linear maps with adapters in the CPU emulation: right, the same in every schedule, no report; the PTX too."""

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
from tests.ops.lora_cases import CASES as OPS
from tests.ops.lora_cases import F32, F64, Problem

BF16, F16 = torch.bfloat16, torch.float16
DTYPES = (BF16, F16, F32)
SOURCES = [f"lora/{name}.cu" for name in ("low_rank", "low_rank_fma", "parts", "product", "product_f32")]
SOURCES += ["norm/fwd.cu", "norm/bwd.cu"]
STRIDED = ("x", "weight", "dy", "residual")
LONG = {"many rows", "many plain rows", "wide"}  # on tensor cores nothing of theirs is new
CASES = {name: problem for name, problem in OPS.items() if name not in LONG} | {
    "beyond a tile": Problem(T=70, C=264, N=(136,), ranks=(33,), dropout=0.1, residual=True),
    "eight": Problem(3, 16, tuple(range(8, 16)), tuple(range(1, 9))),
    "whole units": Problem(T=20, C=40, N=(24, 16), ranks=(4, 16), bias=True, dropout=0.3),
}
# Several tiles of rows in a chunk, and several panels of rows.
PANELS = Problem(1100, 8, (8,), (2,), bias=True, norm="layer", norm_bias=True, dropout=0.1)
Run = dict[str, Any]


def given(problem: Problem, dtype: torch.dtype, padding: int) -> tuple[Run, dict[str, Tensor]]:
    """What both entries take; rows of x, weight, residual and dy have `padding` further elements."""
    tensors = problem.tensors(dtype) | {f"dy{i}": x for i, x in enumerate(problem.upstream(dtype))}
    adapter, vector = (
        next((x.dtype for n, x in tensors.items() if n.startswith(prefix)), dtype) for prefix in ("lora_a", "norm_")
    )
    shared: Run = {"dtype": NAMES[dtype], "adapter_dtype": NAMES[adapter], "norm_dtype": NAMES[vector], "C": problem.C}
    shared |= {"count": len(problem.N), "N": list(problem.N), "scaling": list(problem.scalings)}
    shared |= {"dropout": problem.dropout, "seeds": problem.seeds.numpy() if problem.dropout else None}
    shared |= {"normed": problem.normed, "centered": problem.norm == "layer"}
    shared |= {"eps": problem.eps, "weight_offset": problem.weight_offset}
    arrays = {n: bits(x, padding if n.rstrip("0123456789") in STRIDED else 0) for n, x in tensors.items()}
    return shared | arrays, tensors


def run(
    problem: Problem,
    dtype: torch.dtype,
    padding: int = 0,
    seed: int | None = 0,
    build: simt.Build = "plain",
    mutant: int = 0,
    ptx: bool = False,
    without: tuple[str, ...] = (),
) -> tuple[dict[str, Tensor], list[simt.Report]]:
    """Both directions; the backward is given the forward's own results.

    `without`: gradients that are not asked for, and upstream gradients that are not there.
    """
    shared, tensors = given(problem, dtype, padding)
    reports: list[simt.Report] = []

    def call(name: str, arguments: Run) -> dict[str, np.ndarray]:
        result = simt.run(name, arguments, build=build, seed=seed or 0, mutant=mutant, record=ptx)
        reports.extend(result.reports)
        assert padding or mutant or not sum(result.unwritten.values()), "some elements were never written"
        if ptx:
            return replay(result, SOURCES, seed).outputs
        return result.outputs

    forward = call("lora_fwd", shared)
    more: Run = {name: forward.get(name) for name in ("s", "rstd", "mean")}
    more |= {f"d{name}": True for name in tensors if name.rstrip("0123456789") not in ("residual", "dy")}
    backward = call(
        "lora_bwd",
        shared
        | {name: x for name, x in more.items() if name not in without}
        | dict.fromkeys(name for name in without if name.startswith("dy")),
    )
    values: dict[str, Tensor] = {}
    for name, array in (forward | backward).items():
        if name in ("s", "rstd", "mean"):
            continue
        like = tensors[name[1:]].dtype if name[0] == "d" else dtype
        columns = problem.N[int(name[1:])] if name[0] == "y" else problem.C
        values[name] = tensor(array, like, columns if name[0] == "y" or name[:7] in ("dx", "dweight") else None)
    return values, reports


def assert_correct(problem: Problem, dtype: torch.dtype, values: dict[str, Tensor], label: str) -> None:
    tensors = problem.tensors(dtype)
    exact, rounded = problem.oracle(tensors, F64), problem.oracle(tensors, dtype)
    for i in range(len(problem.N)):  # the residual's gradient is dy itself
        exact.pop(f"dresidual{i}", None)
    assert values.keys() == exact.keys()
    for name, value in values.items():
        factor = FORWARD if name[0] == "y" else BACKWARD
        assert_error_bound(f"{label} {name}", value, rounded[name].to(value.dtype), exact[name], factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    for padding in (0, 1):  # rows on 16 bytes, and not
        first, reports = run(CASES[name], dtype, padding)
        assert not reports, "\n".join(map(str, reports))
        assert_correct(CASES[name], dtype, first, name)
        # float16 differs from bfloat16 in the instruction alone
        for seed in (1, 2, 3) if not padding and dtype != F16 else (1,):
            other, reports = run(CASES[name], dtype, padding, seed)
            assert not reports, "\n".join(map(str, reports))
            assert all(torch.equal(first[n], other[n]) for n in first), f"seed {seed} changes bits"


@pytest.mark.parametrize(("dtype", "build"), [(BF16, "plain"), (F32, "plain"), (BF16, "hooks")], ids=str)
def test_more_rows_than_a_panel(dtype: torch.dtype, build: simt.Build) -> None:
    values, reports = run(PANELS, dtype, seed=1, build=build)
    assert not reports, "\n".join(map(str, reports))
    assert_correct(PANELS, dtype, values, "panels")


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_what_is_not_there_is_zero_and_what_is_not_wanted_costs_nothing(dtype: torch.dtype) -> None:
    """An output without a gradient is as one whose gradient is zero; each gradient is the same without the others."""
    for name in ("group dropout", "layer group"):
        problem = CASES[name]
        every, _ = run(problem, dtype)
        names = tuple(n for n in every if n[0] == "d")
        for one in names:
            values, reports = run(problem, dtype, without=tuple(n for n in names if n != one))
            assert not reports, "\n".join(map(str, reports))
            assert torch.equal(values[one], every[one]), one
        none, reports = run(problem, dtype, without=tuple(f"dy{i}" for i in range(len(problem.N))))
        assert not reports, "\n".join(map(str, reports))
        assert all(not x.any() for n, x in none.items() if n[0] == "d")
        values, reports = run(problem, dtype, without=("dy1",))
        assert not reports, "\n".join(map(str, reports))
        assert not values["dweight1"].any()
        assert not values["dbias1"].any()
        assert torch.equal(values["dweight0"], every["dweight0"])


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_a_group_is_its_projections_and_a_zero_adapter_is_none(dtype: torch.dtype) -> None:
    group = CASES["group"]
    ours, _ = run(group, dtype)
    shared, _ = given(group, dtype, 0)
    for i, n in enumerate(group.N):
        alone = {name.replace(str(i), "0"): x for name, x in shared.items() if name.endswith(str(i))}
        single = {name: x for name, x in shared.items() if not name[-1].isdigit()} | alone
        result = simt.run("lora_fwd", single | {"count": 1, "N": [n], "scaling": [group.scalings[i]]})
        assert torch.equal(tensor(result["y0"], dtype), ours[f"y{i}"])
    zero = {name: np.zeros_like(x) for name, x in shared.items() if name.startswith("lora_b")}
    without = {name: x for name, x in shared.items() if not name.startswith("lora_")}
    adapted, plain = simt.run("lora_fwd", shared | zero), simt.run("lora_fwd", without)
    for i in range(len(group.N)):
        np.testing.assert_array_equal(adapted[f"y{i}"], plain[f"y{i}"])


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, BF16) for name in CASES), *((name, x) for name in ("layer group", "beyond a tile") for x in (F16, F32))],
    ids=str,
)
def test_no_race_no_bound_no_uninitialised_read(name: str, dtype: torch.dtype) -> None:
    for padding in (0, 3) if "group" in name else (0,):
        _, reports = run(CASES[name], dtype, padding, seed=1, build="hooks")
        assert not reports, "\n".join(map(str, reports))


@pytest.mark.sweep  # hooks has exact bounds of device arrays too; this build adds local ones
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["layer group", "whole units"])
def test_exact_bounds(name: str, dtype: torch.dtype) -> None:
    _, reports = run(CASES[name], dtype, seed=1, build="asan")
    assert not reports, "\n".join(map(str, reports))


@pytest.mark.parametrize(
    ("name", "dtype", "seed"),
    [("whole units", BF16, 1), ("whole units", F32, 1), ("whole units", F16, None), ("group", BF16, 2)]
    + [("layer group", dtype, 1) for dtype in DTYPES],
    ids=str,
)
def test_ptx(name: str, dtype: torch.dtype, seed: int | None) -> None:
    values, _ = run(CASES[name], dtype, seed=seed, ptx=True)
    assert_correct(CASES[name], dtype, values, name)


# number: what is wrong, a case that shows it, and its dtype. The numbers stand at `simt::mutant` in csrc/kernels/lora.
MUTANTS = {
    130: ("all rows have the first row's mask", "dropout", BF16),
    131: ("all words of a row's piece come from one counter", "dropout", BF16),
    132: ("adapters are read past their end", "adapter", BF16),
    133: ("columns before the last 256 are left out of s", "beyond a tile", F32),
    134: ("scaling is left out of the tail", "adapter", F32),
    135: ("scaling is left out of dB", "adapter", BF16),
    136: ("all projections have the first one's mask", "group dropout", BF16),
    137: ("the tile's copies are not waited for", "adapter", BF16),
    138: ("no barrier before the masked tile is read", "dropout", F16),
    139: ("no barrier before the tile is copied over", "several tiles", BF16),
    140: ("no barrier before the tile is loaded over", "several tiles", F32),
    141: ("no barrier before the tiles are multiplied", "adapter", F32),
    142: ("rows past the end are copied", "adapter", F16),
    143: ("two columns are stored at once on an odd address", "group", BF16),
    144: ("dx is not masked on tensor cores", "dropout", F16),
    145: ("the product has no low-rank tail", "adapter", BF16),
    146: ("every panel has the first one's mask", "panels", F32),
    147: ("only the last panel counts in dW", "panels", BF16),
    148: ("the adapter's part of dx is not masked", "dropout", F32),
    149: ("only the first panel counts in the norm's gradients", "panels", F32),
}
BUGGED = CASES | {
    "several tiles": Problem(1030, 8, (8,), (2,)),
    "panels": Problem(600, 8, (8,), (2,), norm="rms", dropout=0.5),
}


@pytest.mark.mutants("lora")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name, dtype = MUTANTS[mutant]
    values, reports = run(BUGGED[name], dtype, seed=1, build="hooks", mutant=mutant)
    if not reports:
        with pytest.raises(AssertionError):
            assert_correct(BUGGED[name], dtype, values, what)


def test_what_the_kernels_do_not_take() -> None:
    shared, _ = given(CASES["adapter"], F32, 0)
    x = {"x": np.zeros((1, 8)), "dtype": "float64", "count": 0, "C": 8}
    with pytest.raises(RuntimeError, match="maps on CUDA take float32, float16 and bfloat16, not float64"):
        simt.run("lora_fwd", shared | x)
