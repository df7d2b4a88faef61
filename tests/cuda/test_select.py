"""The CUDA block-score kernels in the CPU emulation: right, the same in every schedule, without a report; as PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.cuda import simt
from tests.cuda.arrays import NAMES, bits
from tests.cuda.replay import replay
from tests.laws import FORWARD, assert_error_bound
from tests.ops.select_cases import CASES, Problem

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def given(problem: Problem, dtype: torch.dtype, padding: int = 0) -> dict[str, Any]:
    """What the entry takes; heads have `padding` further elements."""
    q, k = problem.tensors(dtype)
    blocks = problem.blocks()
    numbers = {name: getattr(blocks, name).numpy() for name in ("starts", "counts", "segments")}
    scale = problem.D**-0.5 if problem.scale is None else problem.scale
    named = {"dtype": NAMES[dtype], "D": problem.D, "most": blocks.most, "scale": scale, "causal": problem.causal}
    return {"q": bits(q.contiguous(), padding), "k": bits(k.contiguous(), padding)} | numbers | named


def assert_correct(problem: Problem, dtype: torch.dtype, scores: np.ndarray, label: str) -> None:
    exact, rounded = problem.oracle(torch.float64, dtype), problem.oracle(torch.float32, dtype)
    assert_error_bound(label, torch.from_numpy(scores), rounded, exact, FORWARD)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    for padding in (0, 1):
        arguments, first = given(problem, dtype, padding), None
        for build, seed in (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1)):
            run = simt.run("block_score", arguments, build=build, seed=seed)  # type: ignore[arg-type]
            assert not run.reports, run.text()
            assert not run.unwritten["scores"]
            first = run["scores"] if first is None else first
            assert np.array_equal(run["scores"], first), f"padding {padding}, {build}, seed {seed}"
        assert first is not None
        assert_correct(problem, dtype, first, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["ragged causal", "wide heads", "nine heads of three"])
def test_ptx(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    for padding in (0, 1):
        run = simt.run("block_score", given(problem, dtype, padding), record=True)
        assert_correct(problem, dtype, replay(run, ["select/block_score.cu"], 1)["scores"], name)


def test_float64_is_refused() -> None:
    arguments = given(CASES["one column"], torch.float32) | {"q": np.zeros((20, 1, 1)), "k": np.zeros((20, 1, 1))}
    with pytest.raises(RuntimeError, match="block_score on CUDA takes float32, float16 and bfloat16, not float64"):
        simt.run("block_score", arguments | {"dtype": "float64"})


# number: what is wrong, a case that shows it, the dtype. They stand at `simt::mutant`.
BF16, F32 = torch.bfloat16, torch.float32
MUTANTS = {
    150: ("key blocks behind the segment's end are scored", "ragged documents", BF16),
    151: ("pairs behind the query count", "causal", BF16),
    152: ("no barrier before the warps' results are read", "one segment", BF16),
    153: ("two of four warps count", "one segment", BF16),
    154: ("shared key heads are taken for repeated ones", "nine heads of three", BF16),
    155: ("a step does not wait for its tiles", "one segment", BF16),
    156: ("no barrier before tiles are written over", "one segment", BF16),
    157: ("negative products count", "one segment", BF16),
    158: ("products go on over the heads", "one segment", BF16),
    159: ("sums go on over tile pairs", "long blocks", BF16),
    160: ("float32: no barrier before tiles are written over", "one segment", F32),
    161: ("float32: negative products count", "one segment", F32),
}


@pytest.mark.mutants("select")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name, dtype = MUTANTS[mutant]
    problem = CASES[name]
    run = simt.run("block_score", given(problem, dtype), build="hooks", mutant=mutant)
    if not run.reports:
        with pytest.raises(AssertionError):
            assert_correct(problem, dtype, run["scores"], what)
