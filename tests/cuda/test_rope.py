"""The CUDA rotary kernel in the CPU emulation: right, the same in every schedule, without a report; the PTX as well."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cuda import simt
from tests.cuda.arrays import NAMES, bits, tensor
from tests.cuda.replay import replay
from tests.laws import FORWARD, assert_error_bound
from tests.ops.rope_cases import CASES, Problem

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def given(problem: Problem, dtype: torch.dtype, padding: int = 0, in_place: bool = False) -> dict[str, Any]:
    """What the entry takes; heads have `padding` further elements."""
    x, cos, sin, positions = problem.tensors(dtype)
    tables = {"cos": cos.numpy(), "sin": sin.numpy(), "positions": positions.numpy()}
    named = {"dtype": NAMES[dtype], "D": problem.shape[3], "interleaved": problem.interleaved, "in_place": in_place}
    return {"x": bits(x.transpose(1, 2), padding)} | tables | named


def result(y: np.ndarray, problem: Problem, dtype: torch.dtype) -> Tensor:
    return tensor(y, dtype, problem.shape[3]).transpose(1, 2)


def assert_correct(problem: Problem, dtype: torch.dtype, y: Tensor, label: str) -> None:
    exact, rounded = problem.oracle(torch.float64, dtype)[0], problem.oracle(dtype, dtype)[0]
    assert_error_bound(label, y, rounded, exact, FORWARD)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    problem, first = CASES[name], None
    for padding, in_place in ((0, False), (0, True), (1, False), (1, True)):
        arguments = given(problem, dtype, padding, in_place)
        for build, seed in (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1)):
            run = simt.run("rope", arguments, build=build, seed=seed)  # type: ignore[arg-type]
            assert not run.reports, run.text()
            assert padding or not run.unwritten["y"]
            y = result(run["y"], problem, dtype)
            first = y if first is None else first
            assert torch.equal(y, first), f"padding {padding}, in place {in_place}, {build}, seed {seed}"
    assert first is not None
    assert_correct(problem, dtype, first, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["halves", "interleaved", "partial interleaved"])
def test_the_gradient_turns_the_other_way(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    upstream = {"x": bits(problem.upstream(dtype).transpose(1, 2)), "inverse": True}
    run = simt.run("rope", given(problem, dtype) | upstream)
    exact, rounded = problem.oracle(torch.float64, dtype)[1], problem.oracle(dtype, dtype)[1]
    assert_error_bound(name, result(run["y"], problem, dtype), rounded, exact, FORWARD)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["partial", "interleaved", "positions by row"])
def test_ptx(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    for padding, in_place in ((0, False), (0, True), (1, False)):
        run = simt.run("rope", given(problem, dtype, padding, in_place), record=True)
        y = replay(run, ["rope/rope.cu"], 1)["y"]
        assert_correct(problem, dtype, result(y, problem, dtype), name)


def test_a_position_out_of_range_gives_nan_in_its_token_only() -> None:
    problem = CASES["halves"]
    arguments = given(problem, torch.float32)
    good = simt.run("rope", arguments)["y"]
    for wrong in (-1, 5000, 1 << 40):
        positions = arguments["positions"].copy()
        positions[0, 7] = wrong
        run = simt.run("rope", arguments | {"positions": positions}, build="hooks")
        assert not run.reports, run.text()
        assert np.isnan(run["y"][:, 7]).all()
        assert np.array_equal(np.delete(run["y"], 7, 1), np.delete(good, 7, 1))


# number: what is wrong, a case that shows it, further elements of its heads. They stand at `simt::mutant`.
MUTANTS = {
    90: ("threads past the end go on", "one pair", 0),
    91: ("columns that stay are not copied", "partial", 0),
    92: ("all rows of the batch have the first one's positions", "positions by row", 0),
    93: ("a position out of range is read", "out of range", 0),
    94: ("the second column of a pair is its neighbour's", "halves", 0),
    95: ("the gradient turns forward", "inverse", 0),
    96: ("the second column has its terms mixed up", "halves", 0),
    97: ("the second columns are not written", "interleaved", 0),
    98: ("rows off 16 bytes are read by units", "halves", 1),
}


@pytest.mark.mutants("rope")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name, padding = MUTANTS[mutant]
    problem = CASES.get(name, dataclasses.replace(CASES["halves"], shape=(1, 2, 9, 16)))
    arguments = given(problem, torch.float32, padding)
    exact = problem.oracle(torch.float64, torch.float32)
    if name == "out of range":
        arguments["positions"] = arguments["positions"] + 5000
    if name == "inverse":
        arguments |= {"inverse": True, "x": bits(problem.upstream(torch.float32).transpose(1, 2))}
    run = simt.run("rope", arguments, build="hooks", mutant=mutant)
    if not run.reports:
        y, wanted = result(run["y"], problem, torch.float32), exact[name == "inverse"]
        with pytest.raises(AssertionError):
            assert_error_bound(what, y, wanted.float(), wanted, FORWARD)


def test_float64_is_refused() -> None:
    arguments = given(CASES["one pair"], torch.float32) | {"x": np.zeros((1, 4, 1, 2)), "dtype": "float64"}
    with pytest.raises(RuntimeError, match="rope on CUDA takes float32, float16 and bfloat16, not float64"):
        simt.run("rope", arguments)
