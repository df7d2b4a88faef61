"""The CUDA activations in the CPU emulation: right, the same in every schedule, without a report; the PTX as well."""

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
from tests.ops.glu_cases import CASES, Problem

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KEYS = {"glu_fwd": ("y",), "glu_bwd": ("dgate", "dup")}


def given(problem: Problem, dtype: torch.dtype, padding: int = 0) -> dict[str, Any]:
    """What both entries take; rows have `padding` further elements, those of up one more, so that strides differ."""
    tensors = problem.tensors(dtype)
    named = {"dtype": NAMES[dtype], "activation": problem.activation, "F": problem.F}
    rows = {"gate": bits(tensors[0], padding), "dy": bits(problem.upstream(dtype), padding)}
    if problem.gated:
        rows["up"] = bits(tensors[1], padding + (8 if padding == 0 else 1))
    return named | rows


def run(problem: Problem, dtype: torch.dtype, padding: int = 0, **options: Any) -> tuple[dict[str, Tensor], list[Any]]:
    """Both directions; `ptx` replays them, `in_place` overwrites gate and up."""
    ptx, in_place = options.pop("ptx", False), options.pop("in_place", False)
    values: dict[str, Tensor] = {}
    reports: list[Any] = []
    for entry, keys in KEYS.items():
        arguments = given(problem, dtype, padding) | {"in_place": in_place}
        result = simt.run(entry, arguments, record=ptx, **options)
        outputs = replay(result, ["glu/glu.cu"], 1).outputs if ptx else result.outputs
        reports += result.reports
        values |= {key: tensor(outputs[key], dtype, problem.F) for key in keys if key in outputs}
    return values, reports


def assert_correct(problem: Problem, dtype: torch.dtype, values: dict[str, Tensor], label: str) -> None:
    exact, rounded = problem.oracle(torch.float64, dtype), problem.oracle(dtype, dtype)
    assert values.keys() == exact.keys()
    for name, value in values.items():
        factor = FORWARD if name == "y" else BACKWARD
        assert_error_bound(f"{label} {name}", value, rounded[name], exact[name], factor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    problem, first = CASES[name], None
    for padding, in_place in ((0, False), (0, True), (1, False)):
        for build, seed in (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1)):
            values, reports = run(problem, dtype, padding, in_place=in_place, build=build, seed=seed)
            assert not reports, "\n".join(map(str, reports))
            first = first or values
            assert all(torch.equal(first[n], values[n]) for n in first), f"{padding}, {in_place}, {build}, {seed}"
    assert first is not None
    assert_correct(problem, dtype, first, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_tanh", "relu2 alone", "odd columns"])
def test_ptx(name: str, dtype: torch.dtype) -> None:
    for padding, in_place in ((0, True), (1, False)):
        values, _ = run(CASES[name], dtype, padding, ptx=True, in_place=in_place)
        assert_correct(CASES[name], dtype, values, name)


# number: what is wrong, a case that shows it. The numbers stand at `simt::mutant` in csrc/kernels/glu.
MUTANTS = {
    110: ("silu's slope lacks a term", "silu"),
    111: ("gelu's slope lacks the density", "gelu"),
    112: ("the slope of gelu_tanh has a wrong factor", "gelu_tanh"),
    113: ("relu passes every gradient", "relu"),
    114: ("relu2's slope lacks its factor", "relu2"),
    115: ("threads past the end go on", "odd columns"),
    116: ("up is read with gate's stride", "silu"),
    117: ("the gate is not multiplied", "silu"),
    118: ("up's gradient has the slope", "silu"),
    119: ("rows off 16 bytes are written by units", "odd columns"),
    120: ("up's gradient is not written", "silu"),
}


@pytest.mark.mutants("glu")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name = MUTANTS[mutant]
    values, reports = run(CASES[name], torch.float32, build="hooks", seed=1, mutant=mutant)
    if not reports:
        with pytest.raises(AssertionError):
            assert_correct(CASES[name], torch.float32, values, what)


def test_what_the_kernels_do_not_take() -> None:
    x = {"gate": np.zeros((1, 8)), "F": 8, "dtype": "float64", "activation": "silu"}
    with pytest.raises(RuntimeError, match="activations on CUDA take float32, float16 and bfloat16, not float64"):
        simt.run("glu_fwd", x)
    with pytest.raises(RuntimeError, match="activation is 'tanh'; allowed: silu, gelu, gelu_tanh, relu, relu2"):
        simt.run("glu_fwd", x | {"activation": "tanh"})
