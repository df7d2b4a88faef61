"""The block-score kernel without torch ops, in every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from longspan import kernels
from tests import machine
from tests.laws import FORWARD, assert_error_bound
from tests.ops.select_cases import CASES, Problem


def run(problem: Problem, dtype: torch.dtype = torch.float32, threads: int = 2) -> np.ndarray:
    q, k = (x.numpy() for x in problem.tensors(dtype))
    blocks = problem.blocks()
    numbers = [x.numpy() for x in (blocks.starts, blocks.counts, blocks.segments)]
    return kernels.block_score(q, k, *numbers, blocks.most, scale=problem.scale, causal=problem.causal, threads=threads)


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_every_instruction_set_keeps_the_error_bound(
    name: str, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    problem = CASES[name]
    exact, rounded = problem.oracle(torch.float64, dtype), problem.oracle(torch.float32, dtype)
    assert_error_bound("scores", torch.from_numpy(run(problem, dtype)), rounded, exact, FORWARD)


def test_the_number_of_threads_changes_no_bit() -> None:
    first = run(CASES["ragged causal"], threads=1)
    for threads in (2, 5):
        assert np.array_equal(run(CASES["ragged causal"], threads=threads), first)


def test_mistakes_are_named() -> None:
    q = np.zeros((8, 4, 16), np.float32)
    starts, counts, segments = (np.array(x, np.int32) for x in ([0, 4], [4, 4], [0, 2]))
    for arguments, message in (
        ((q, q[:, :3], starts, counts, segments, 2), "heads that divide those of q"),
        ((q, q, starts, counts[:1], segments, 2), "counts must be as long as starts"),
        ((q, q, starts, counts, segments, 1), "segment 0 has 2 blocks; 0 to 1 are allowed"),
        ((q, q, starts, counts + 1, segments, 2), "block 1 has 5 rows from 4; it must have 1 to 256 of 8"),
        ((q, q, starts, counts * 0, segments, 2), "block 0 has 0 rows from 0; it must have 1 to 256 of 8"),
    ):
        with pytest.raises(ValueError, match=message):
            kernels.block_score(*arguments)
