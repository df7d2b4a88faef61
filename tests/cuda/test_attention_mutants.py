"""Planted bugs in the attention kernels: each must be seen by the check that is there for it."""

from __future__ import annotations

import pytest
import torch

from longspan.ops import AttentionPattern
from tests.cuda import simt
from tests.cuda.attention_runs import Problem, assert_correct, run

P = AttentionPattern
pytestmark = pytest.mark.mutants("attention")
CAUSAL = Problem((1, 2, 1, 200, 64), P.full())
LOW = Problem((1, 2, 1, 70, 64), P.full(causal=False), low=True)
WINDOW = Problem((1, 2, 1, 200, 128), P.window(37, sinks=2))

# number: (what is wrong, problem). The numbers stand at `simt::mutant` in csrc/kernels/attention.
FORWARD = {
    1: ("chunks are not permuted: bank conflicts", CAUSAL),
    2: ("rows past the end are read", CAUSAL),
    3: ("halves of a B fragment swapped", CAUSAL),
    4: ("quarters of an A fragment swapped", CAUSAL),
    5: ("rows past the end are stored", CAUSAL),
    6: ("keys past the end count in a tile that is full otherwise", Problem((1, 1, 1, 40, 64), P.full(causal=False))),
    7: ("waits for too few copies", CAUSAL),
    8: ("no barrier before a tile is read", CAUSAL),
    9: ("one warp skips the barrier", CAUSAL),
    10: ("no barrier before a tile is overwritten", CAUSAL),
    11: ("reads beyond shared memory", CAUSAL),
    12: ("partial tiles are not masked", WINDOW),
    13: ("one lane skips a shuffle", CAUSAL),
    14: ("the accumulator is not rescaled", CAUSAL),
    15: ("no barrier before what is shared by the block is read", CAUSAL),
}
BACKWARD = {
    21: ("dK is not scaled", CAUSAL),
    22: ("waits for too few copies", CAUSAL),
    23: ("no barrier before a tile is read", CAUSAL),
    24: ("no barrier before a tile is overwritten", CAUSAL),
    25: ("delta is left out of dK", CAUSAL),
    26: ("partial tiles are not masked in dK and dV", WINDOW),
    27: ("dV takes the other stage's rows", CAUSAL),
    31: ("no barrier before keys are read", CAUSAL),
    32: ("one warp skips the barrier", CAUSAL),
    33: ("no barrier before keys are overwritten", CAUSAL),
    34: ("both rows of a lane take one delta", CAUSAL),
    35: ("partial tiles are not masked in dQ", WINDOW),
    36: ("keys past the end count in dQ in a tile that is full otherwise", LOW),
}

# The float32 kernels: number -> (what is wrong, problem, whether backward shows it).
FLOAT = {
    51: ("no barrier before keys are overwritten", CAUSAL, False),
    52: ("partial tiles are not masked", WINDOW, False),
    53: ("the row sum is not rescaled", CAUSAL, False),
    54: ("no barrier before rows are overwritten", CAUSAL, True),
    55: ("no barrier before probabilities are read", CAUSAL, True),
    56: ("keys past the end have probabilities", LOW, True),
    57: ("no barrier before keys are overwritten in dQ", CAUSAL, True),
}


def seen(
    problem: Problem,
    mutant: int,
    build: simt.Build,
    *,
    backward: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> list[str]:
    """Which checks notice the planted bug."""
    found = []
    outcome = run(problem, dtype, backward=backward, build=build, seed=1, mutant=mutant)
    found += sorted({report.rule for report in outcome.reports})
    if outcome.conflicts():
        found.append("bank conflicts")
    outcome.forward.reports.clear()
    if outcome.backward:
        outcome.backward.reports.clear()
    try:
        assert_correct(problem, dtype, outcome, "")
    except AssertionError:
        found.append("wrong values")
    return found


@pytest.mark.parametrize("mutant", FORWARD)
def test_forward_bug_is_seen(mutant: int) -> None:
    what, problem = FORWARD[mutant]
    assert seen(problem, mutant, "hooks", backward=False), f"nothing noticed: {what}"


@pytest.mark.parametrize("mutant", BACKWARD)
def test_backward_bug_is_seen(mutant: int) -> None:
    what, problem = BACKWARD[mutant]
    assert seen(problem, mutant, "hooks", backward=True), f"nothing noticed: {what}"


@pytest.mark.parametrize("mutant", FLOAT)
def test_float32_bug_is_seen(mutant: int) -> None:
    what, problem, backward = FLOAT[mutant]
    found = seen(problem, mutant, "hooks", backward=backward, dtype=torch.float32)
    assert found, f"nothing noticed: {what}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("problem", [CAUSAL, WINDOW, LOW], ids=["causal", "window", "low"])
def test_no_bug_is_seen_where_none_is_planted(problem: Problem, dtype: torch.dtype) -> None:
    assert seen(problem, 0, "hooks", backward=True, dtype=dtype) == []
