"""The CUDA kernels of grouped products in the CPU emulation: right, the same in every schedule, as PTX."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longspan.ops.reference import grouped as reference
from tests.cuda import arrays, simt
from tests.cuda.replay import replay
from tests.laws import FORWARD, assert_error_bound
from tests.ops.grouped_cases import Problem

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMES = ("grouped_expand", "grouped_reduce", "grouped_weight")
SCHEDULES: tuple[tuple[simt.Build, int], ...] = (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1))
CASES = {
    "by rows": Problem(n=60, width=24, C=40),
    "by columns": Problem(n=60, width=24, C=40, by_rows=False),
    "odd sizes": Problem(n=37, width=7, C=13),
    "more than a tile": Problem(n=300, blocks=2, active=1, width=136, C=48, rank=20),
    "three of five": Problem(n=50, blocks=5, active=3, width=16, C=24, by_rows=False, rank=0, bias=False),
    "empty blocks": Problem(n=40, width=16, C=16, only=(1, 3)),
    "no rows": Problem(n=0, width=8, C=8),
}


def given(name: str, problem: Problem, dtype: torch.dtype, padding: int = 0) -> dict[str, Any]:
    """What the entries take; rows have `padding` further elements."""
    sets = problem.sets()
    found: dict[str, Any] = {"dtype": arrays.NAMES[dtype], "offsets": sets.offsets.numpy(), "by_rows": problem.by_rows}
    found |= {"blocks": problem.blocks, "active": problem.active}
    if name == "grouped_weight":
        a, b = problem.pair(dtype)
        return found | {
            "a": arrays.bits(a, padding),
            "b": arrays.bits(b, padding),
            "columns": a.shape[1],
            "b_columns": b.shape[1],
            "wide": padding == 1,
        }
    tensors = problem.tensors(name, dtype)
    x, weight = tensors["x"], tensors["weight"]
    outputs = problem.active * problem.width if name == "grouped_expand" else problem.C
    found |= {"x": arrays.bits(x, padding), "weight": arrays.bits(weight, padding)}
    found |= {"columns": x.shape[1], "weight_columns": weight.shape[1], "outputs": outputs}
    if "bias" in tensors:
        found["bias"] = arrays.bits(tensors["bias"][None])[0]
    if "tail" in tensors:
        found |= {f"tail_{key}": t.numpy() for key, t in zip("pq", tensors["tail"], strict=True)}
    return found


def assert_correct(name: str, problem: Problem, dtype: torch.dtype, run: Any, padding: int, label: str) -> None:
    sets = problem.sets()

    def oracle(kind: torch.dtype) -> torch.Tensor:
        if name == "grouped_weight":
            a, b = (t.to(kind) for t in problem.pair(dtype))
            return reference.grouped_weight(a, b, sets, by_rows=problem.by_rows)
        tensors = problem.tensors(name, dtype)
        # The tail counts in the dtype of the rows, as lora_linear's does on CUDA.
        cast = {
            key: tuple(t.to(dtype).to(kind) for t in x) if key == "tail" else x.to(kind) for key, x in tensors.items()
        }
        y: torch.Tensor = getattr(reference, name)(sets=sets, by_rows=problem.by_rows, **cast)
        return y

    kind = torch.float32 if name == "grouped_weight" and padding == 1 else dtype
    found = arrays.tensor(run["dweight" if name == "grouped_weight" else "y"], kind)
    assert_error_bound(label, found, oracle(torch.float32).to(kind), oracle(torch.float64), FORWARD)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_right_and_the_same_in_every_schedule(name: str, case: str, dtype: torch.dtype) -> None:
    problem = CASES[case]
    for padding in (0, 1):
        arguments, first = given(name, problem, dtype, padding), None
        for build, seed in SCHEDULES if padding == 0 else SCHEDULES[:1] + SCHEDULES[4:]:
            run = simt.run(name, arguments, build=build, seed=seed)
            assert not run.reports, run.text()
            assert not any(run.unwritten.values())
            key = "dweight" if name == "grouped_weight" else "y"
            first = run[key] if first is None else first
            assert (run[key] == first).all() or problem.n == 0, f"padding {padding}, {build}, seed {seed}"
            if (build, seed) == ("plain", 0):
                assert_correct(name, problem, dtype, run, padding, case)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_ptx(name: str, dtype: torch.dtype) -> None:
    for by_rows in (True, False):
        problem = Problem(n=30, width=16, C=24, by_rows=by_rows)
        source = "grouped/product_f32.cu" if dtype == torch.float32 else "grouped/product.cu"
        sources = [source] if name == "grouped_weight" or dtype == torch.float32 else [source, "lora/parts.cu"]
        run = replay(simt.run(name, given(name, problem, dtype), record=True), sources, 1)
        assert_correct(name, problem, dtype, run, 0, f"by_rows {by_rows}")


# number: what is wrong, the entry, the dtype. They stand at `simt::mutant`.
BF16, F32 = torch.bfloat16, torch.float32
MUTANTS = {
    230: ("all slots have the first block of their set", "grouped_reduce", F32, 0),
    231: ("the tail is left out", "grouped_expand", F32, 0),
    232: ("pairs are stored where rows do not start on them", "grouped_expand", BF16, "odd sizes"),
    233: ("no barrier before tiles are written over", "grouped_expand", BF16, "more than a tile"),
    234: ("float32: no barrier before tiles are read", "grouped_expand", F32, 0),
    235: ("float32: the bias is left out", "grouped_expand", F32, 0),
}


@pytest.mark.mutants("grouped")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name, dtype, case = MUTANTS[mutant]
    problem = CASES[case or "by rows"]
    run = simt.run(name, given(name, problem, dtype), build="hooks", mutant=mutant)
    if not run.reports:
        with pytest.raises(AssertionError):
            assert_correct(name, problem, dtype, run, 0, what)
