"""Grouped products without torch ops, in every instruction set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from longspan.ops.reference import grouped as reference
from tests import machine
from tests.laws import FORWARD, assert_error_bound
from tests.ops.grouped_cases import CASES, Problem

NAMES = ("grouped_expand", "grouped_reduce")


def run(name: str, problem: Problem, given: dict[str, Any], threads: int = 2) -> np.ndarray:
    p, q = given.get("tail", (None, None))
    arrays = {key: given[key].numpy() for key in ("x", "weight", "bias") if key in given}
    return getattr(kernels, name)(
        arrays["x"],
        arrays["weight"],
        problem.sets().offsets.numpy(),
        problem.blocks,
        problem.active,
        by_rows=problem.by_rows,
        bias=arrays.get("bias"),
        tail_p=None if p is None else p.numpy(),
        tail_q=None if q is None else q.numpy(),
        threads=threads,
    )


@pytest.mark.parametrize("isa", machine.instruction_sets())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_instruction_set_keeps_the_error_bound(
    name: str, case: str, dtype: torch.dtype, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    problem = CASES[case]
    given = problem.tensors(name, dtype)

    def oracle(kind: torch.dtype) -> torch.Tensor:
        cast = {key: tuple(t.to(kind) for t in x) if key == "tail" else x.to(kind) for key, x in given.items()}
        return getattr(reference, name)(sets=problem.sets(), by_rows=problem.by_rows, **cast)

    found = torch.from_numpy(run(name, problem, given))
    assert_error_bound(case, found, oracle(torch.float32), oracle(torch.float64), FORWARD)


@pytest.mark.parametrize("case", CASES)
def test_weight_gradient(case: str) -> None:
    problem = CASES[case]
    a, b = problem.pair(torch.float32)
    offsets = problem.sets().offsets.numpy()
    found = kernels.grouped_weight(
        a.numpy(), b.numpy(), offsets, problem.blocks, problem.active, by_rows=problem.by_rows, threads=2
    )
    exact, rounded = (
        reference.grouped_weight(a.to(d), b.to(d), problem.sets(), by_rows=problem.by_rows)
        for d in (torch.float64, torch.float32)
    )
    assert_error_bound(case, torch.from_numpy(found), rounded, exact, FORWARD)


def test_the_number_of_threads_changes_no_bit() -> None:
    problem = CASES["wide"]
    given = problem.tensors("grouped_expand", torch.float32)
    first = run("grouped_expand", problem, given, 1)
    assert all(np.array_equal(run("grouped_expand", problem, given, threads), first) for threads in (2, 5))


def test_mistakes_are_named() -> None:
    x, w = np.zeros((6, 5), np.float32), np.zeros((8, 5), np.float32)
    offsets = np.array([0, 6, 6, 6, 6, 6, 6], np.int32)
    for call, message in (
        (lambda: kernels.grouped_expand(x, w, offsets, 9, 2), "blocks is 9 and active 2"),
        (lambda: kernels.grouped_expand(x, w, offsets[1:], 4, 2), r"offsets is int32 \[6\]; it must be int32 \[7\]"),
        (lambda: kernels.grouped_expand(x, w, offsets * 0, 4, 2), "must grow from 0 to the 6 rows"),
        (lambda: kernels.grouped_expand(x, w[:7].copy(), offsets, 4, 2), r"weight must be \[G\*Nb,C\]"),
        (lambda: kernels.grouped_reduce(x, w, offsets, 4, 2), r"weight must be \[G\*Kb,N\]"),
        (lambda: kernels.grouped_expand(x, w, offsets, 4, 2, tail_p=x), "give both tail_p and tail_q"),
        (lambda: kernels.grouped_expand(x, w, offsets, 4, 2, tail_p=x, tail_q=x), r"tail_p must be float32 \[n,R\]"),
        (lambda: kernels.grouped_weight(x, w, offsets, 4, 2), "a must be"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
