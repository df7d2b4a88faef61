"""Kept keys by the CUDA kernels in the CPU emulation: the integers of the CPU, in every schedule; as PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longspan.ops.reference import topl as reference
from tests.cuda import arrays, simt
from tests.cuda.replay import replay
from tests.ops.pq_cases import CHOICES, Choice, Problem

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMES = [name for name in CHOICES if name not in ("long", "nine heads of three", "nine heads of three, match")] + [
    "wide"
]
SCHEDULES: tuple[tuple[simt.Build, int], ...] = (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1))
EXTRA = {
    "wide": Choice(Problem(B=1, H=3, K=1, T=140, D=64, subspaces=8, groups=1), budget=20, window=4, sinks=4),
    "crowded": Choice(Problem(B=1, H=1, K=1, T=200, D=8, subspaces=2, codewords=2, groups=1), budget=30),
}
SOURCES = ["topl/topl.cu"]


def choice_of(name: str) -> Choice:
    return EXTRA.get(name) or CHOICES[name]


def given(choice: Choice, dtype: torch.dtype, padding: int = 0) -> dict[str, Any]:
    """What the entries take."""
    who = choice.who(torch.float32 if dtype == torch.float16 else dtype)
    if dtype == torch.float16 and "q" in who:
        who["q"] = choice.problem.tensors(dtype)[0]
        who["codebook"] = choice.problem.tensors(dtype)[2]
    where = choice.where()
    layout = where.pop("layout")
    where["model_window"] = where["model_window"] or 0
    found: dict[str, Any] = {
        name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in who.items() if name != "q"
    }
    if "q" in who:
        found |= {"q": arrays.bits(who["q"].contiguous(), padding), "D": choice.problem.D}
    if layout is not None:
        found |= {"query_layout": layout.queries.numpy(), "key_layout": layout.keys.numpy()}
    return found | where | {"dtype": arrays.NAMES[dtype], "budget": choice.budget, "slots": choice.budget}


def wanted(choice: Choice, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Integers by sorting scores; threshold and cut of the CPU's kernel, which tests/ops holds to the same."""
    if dtype == torch.float16:  # the CPU has none: what it rounds to in float32
        q, k, codebook = choice.problem.tensors(dtype)
        who = choice.who(torch.float32) | ({"q": q.float(), "codebook": codebook} if choice.scorer == "adc" else {})
        from longspan import ops

        selection = ops.topl_threshold(budget=choice.budget, **who, **choice.where())
        queries = who.get("q")
        del k
    else:
        selection, queries = choice.select(dtype)
    kept = choice.oracle(selection, queries)
    return {
        "threshold": selection.threshold.numpy(),
        "cut": selection.cut.numpy(),
        "kept": kept.sum(-1).int().numpy(),
        "indices": reference.topl_indices(kept, choice.budget).numpy(),
    }


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_the_integers_are_those_of_the_cpu(name: str, dtype: torch.dtype) -> None:
    choice = choice_of(name)
    expected = wanted(choice, dtype)
    arguments = given(choice, dtype, padding=1)
    for build, seed in SCHEDULES:
        run = simt.run("topl_threshold", arguments, build=build, seed=seed)
        assert not run.reports, run.text()
        assert build == "plain" or not any(run.unwritten.values())  # plain takes the threshold -1 for the poison
        for what in ("threshold", "cut", "kept"):
            assert np.array_equal(run[what], expected[what]), f"{what}, {build}, seed {seed}"
        numbers = {"threshold": run["threshold"], "cut": run["cut"]}
        lists = simt.run("topl_indices", arguments | numbers, build=build, seed=seed)
        assert not lists.reports, lists.text()
        assert np.array_equal(lists["indices"], expected["indices"]), f"{build}, seed {seed}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "problem", [Problem(), Problem(D=20, subspaces=3), Problem(T=9, D=24, subspaces=6, codewords=40)]
)
def test_tables(problem: Problem, dtype: torch.dtype) -> None:
    q, _, codebook = problem.tensors(dtype)
    expected = reference.adc_table(q, codebook).numpy()
    arguments = {"q": arrays.bits(q.contiguous(), 1), "D": problem.D, "codebook": codebook.numpy()}
    arguments["dtype"] = arrays.NAMES[dtype]
    for build, seed in SCHEDULES:
        run = simt.run("adc_table", arguments, build=build, seed=seed)
        assert not run.reports, run.text()
        assert np.array_equal(run["tables"], expected), f"{build}, seed {seed}"
    replayed = replay(simt.run("adc_table", arguments, record=True), ["pq/tables.cu"], 1)
    assert np.array_equal(replayed["tables"], expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["adc, window and sinks", "match", "bytes"])
def test_ptx(name: str, dtype: torch.dtype) -> None:
    choice = choice_of(name)
    expected, arguments = wanted(choice, dtype), given(choice, dtype)
    run = replay(simt.run("topl_threshold", arguments, record=True), SOURCES, 1)
    for what in ("threshold", "cut", "kept"):
        assert np.array_equal(run[what], expected[what]), what
    numbers = {"threshold": expected["threshold"], "cut": expected["cut"]}
    lists = replay(simt.run("topl_indices", arguments | numbers, record=True), SOURCES, 1)
    assert np.array_equal(lists["indices"], expected["indices"])


# number: what is wrong, the entry, a case that shows it. They stand at `simt::mutant`.
MUTANTS = {
    190: ("no warp barrier before products are read", "topl_threshold", "adc"),
    191: ("no warp barrier before the table is read", "topl_indices", "adc"),
    192: ("no warp barrier before histograms are added to", "topl_threshold", "adc"),
    193: ("near keys do not count in the budget", "topl_threshold", "adc, window and sinks"),
    194: ("the oldest of equal keys is kept", "topl_threshold", "crowded"),
    195: ("the key at the cut is left out", "topl_indices", "crowded"),
}


@pytest.mark.mutants("topl")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, entry, name = MUTANTS[mutant]
    choice = choice_of(name)
    expected = wanted(choice, torch.float32)
    arguments = given(choice, torch.float32) | {"threshold": expected["threshold"], "cut": expected["cut"]}
    run = simt.run(entry, arguments, build="hooks", mutant=mutant)
    outputs = ("indices",) if entry == "topl_indices" else ("threshold", "cut", "kept")
    assert run.reports or any(not np.array_equal(run[x], expected[x]) for x in outputs), what
