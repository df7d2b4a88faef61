"""The CUDA kernels of noise in the CPU emulation: the reference's bits in every schedule, without a report; the PTX."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cuda import simt
from tests.cuda.arrays import NAMES, bits, tensor
from tests.cuda.replay import replay
from tests.ops.perturb_cases import BF16, CASES, F16, F32, Problem

DISTRIBUTIONS = ("gaussian", "rademacher")
HALF = {
    "float16": replace(CASES["halves"], dtypes=(F16,)),
    "mixed of three": replace(CASES["mixed"], dtypes=(BF16, F16, F32)),
}
ALL = CASES | HALF
SCHEDULES = (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1))


def given(problem: Problem, distribution: str, skip: int = 0, members: bool = True) -> dict[str, Any]:
    """What the entries take; tensors begin `skip` elements into their arrays."""
    padded = [torch.nn.functional.pad(x, (skip, 0)) for x in problem.tensors()]
    arguments: dict[str, Any] = {f"x{i}": bits(x) for i, x in enumerate(padded)}
    arguments |= {"dtypes": [NAMES[x.dtype] for x in padded], "skip": skip, "distribution": distribution}
    count = len(problem.seeds) if members else 1
    arguments |= {"seeds": np.array(problem.seeds[:count]), "steps": np.array(problem.steps[:count])}
    arguments |= {"scale": np.float32([problem.scale]), "coefficients": np.float32(problem.coefficients)}
    arguments |= {"alpha": np.float32([problem.alpha])}
    arguments |= {"decay": None if problem.decay is None else np.float32(problem.decay)}
    return arguments | problem.names()


def results(
    outputs: Any, problem: Problem, skip: int = 0, name: str = "y", dtype: torch.dtype | None = None
) -> list[Tensor]:
    return [tensor(outputs[f"{name}{i}"], dtype or problem.dtype(i))[skip:] for i in range(len(problem.sizes))]


def assert_same(found: list[Tensor], expected: list[Tensor], label: str) -> None:
    for i, (ours, exact) in enumerate(zip(found, expected, strict=True)):
        rounded = exact.to(ours.dtype)
        assert torch.equal(ours, rounded), f"{label}: tensor {i}"
        assert torch.equal(ours.signbit(), rounded.signbit()), f"{label}: signs of tensor {i}"


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", ALL)
def test_the_bits_of_the_reference_in_every_schedule(name: str, distribution: str) -> None:
    problem = ALL[name]
    for build, seed in SCHEDULES:
        skip = seed % 2
        label = f"{build}, seed {seed}, skip {skip}"
        run = simt.run("perturb", given(problem, distribution, skip, members=False), build=build, seed=seed)  # type: ignore[arg-type]
        assert not run.reports, run.text()
        assert_same(results(run, problem, skip), problem.perturbed(distribution), f"perturb, {label}")
        run = simt.run("es_update", given(problem, distribution, skip), build=build, seed=seed)  # type: ignore[arg-type]
        assert not run.reports, run.text()
        assert_same(results(run, problem, skip), problem.updated(distribution), f"es_update, {label}")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [BF16, F16, F32], ids=str)
def test_results_beside_the_sources(dtype: torch.dtype, distribution: str) -> None:
    problem = CASES["shards"]
    names = [NAMES[dtype]] * len(problem.sizes)
    run = simt.run("perturb", given(problem, distribution) | {"target_dtypes": names}, build="hooks", seed=1)
    assert not run.reports, run.text()
    assert not any(run.unwritten.values())
    assert_same(results(run, problem, dtype=dtype), problem.perturbed(distribution), "target")
    run = simt.run("es_update", given(problem, distribution) | {"copy_dtypes": names}, build="hooks", seed=1)
    assert not run.reports, run.text()
    assert not any(run.unwritten.values())
    assert_same(results(run, problem, name="copy", dtype=dtype), problem.updated(distribution), "copy")
    assert_same(results(run, problem), problem.updated(distribution), "target beside a copy")


def test_more_tensors_than_a_launch_takes() -> None:
    count = 700
    problem = Problem(
        (3,) * count, ids=tuple(range(count)), offsets=(0,) * count, decay=tuple(i / count for i in range(count))
    )
    run = simt.run("es_update", given(problem, "gaussian"))
    assert not run.reports, run.text()
    assert run.statistics["launches"] == 2
    assert_same(results(run, problem), problem.updated("gaussian"), "many tensors")


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("name", ["many members", "shards", "mixed of three"])
def test_ptx(name: str, distribution: str) -> None:
    problem = ALL[name]
    for skip in (0, 1):
        run = simt.run("es_update", given(problem, distribution, skip), record=True)
        again = replay(run, ["perturb/perturb.cu"], 1)
        assert_same(results(again, problem, skip), problem.updated(distribution), f"skip {skip}")


# number: what is wrong, a case that shows it, the distribution, elements before the first. At `simt::mutant`.
MUTANTS = {
    350: ("a run reads past the tensor", "one member", "gaussian", 0),
    351: ("float16 is read as bfloat16", "float16", "gaussian", 0),
    352: ("a run writes before the tensor", "shards", "gaussian", 0),
    353: ("counters have 32 bits", "aligned shards", "gaussian", 0),
    354: ("all streams are one", "aligned shards", "gaussian", 0),
    355: ("sums are fused multiply-adds", "many members", "gaussian", 0),
    356: ("no barrier before signs are read", "one member", "rademacher", 0),
    357: ("the first bits of a word are everyone's", "one member", "rademacher", 0),
    358: ("no barrier before signs are written over", "many members", "rademacher", 0),
    359: ("decay by the place in the table", "an empty tensor", "gaussian", 0),
    360: ("sums begin at +0", "no weight", "gaussian", 0),
    361: ("all members have the first one's weight", "many members", "gaussian", 0),
    362: ("noise of weight 0 is added", "no weight", "gaussian", 0),
    363: ("all tensors have one noise", "one member", "gaussian", 0),
    364: ("runs off 16 bytes are read as such", "one member", "gaussian", 1),
}


@pytest.mark.mutants("perturb")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name, distribution, skip = MUTANTS[mutant]
    problem = ALL[name]
    run = simt.run("es_update", given(problem, distribution, skip), build="hooks", mutant=mutant)
    if not run.reports:
        with pytest.raises(AssertionError):
            assert_same(results(run, problem, skip), problem.updated(distribution), what)


def test_float64_is_refused() -> None:
    arguments = given(CASES["one member"], "gaussian")
    with pytest.raises(RuntimeError, match="added to float32, float16 and bfloat16, not float64"):
        simt.run("perturb", arguments | {"x0": np.zeros(5), "dtypes": ["float64", "float32", "float32"]})
