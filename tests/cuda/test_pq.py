"""The quantiser's CUDA kernels in the CPU emulation: codes to the bit, sums by the error law, in every schedule; as
PTX.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longspan.ops.reference import pq as reference
from tests.cuda import arrays, simt
from tests.cuda.replay import replay
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.pq_cases import CASES, Problem, pack

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
SMALL = {
    "plain": CASES["plain"],
    "no rows": CASES["no rows"],
    "a last piece that is not full": CASES["a last piece that is not full"],
    "bytes": Problem(B=1, T=40, D=24, subspaces=6, codewords=40),
    "two words": Problem(B=1, H=2, K=2, T=33, D=40, subspaces=10, groups=1),
    "some chunks": Problem(B=1, H=1, K=1, T=600, D=8, subspaces=2, groups=1),
}
SCHEDULES: tuple[tuple[simt.Build, int], ...] = (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1))


def given(problem: Problem, dtype: torch.dtype, power: int, padding: int = 0) -> dict[str, Any]:
    """Keys [B,K,S,D], their codebook and codes."""
    _, k, codebook = problem.tensors(dtype)
    codes = pack(reference.pq_encode(k, codebook, power), problem.codewords).numpy()
    named = {"dtype": arrays.NAMES[dtype], "D": problem.D, "power": power, "need_dz": True}
    return {"z": arrays.bits(k.contiguous(), padding), "codebook": codebook.numpy(), "codes": codes} | named


def shape_of(problem: Problem) -> dict[str, int]:
    return {
        "groups": problem.groups,
        "subspaces": problem.subspaces,
        "codewords": problem.codewords,
        "width": problem.width,
    }


def assert_loss(problem: Problem, dtype: torch.dtype, power: int, run: Any, label: str) -> None:
    _, k, codebook = problem.tensors(dtype)
    codes = reference.pq_encode(k, codebook, power)
    results = {}
    for kind in (torch.float32, torch.float64):
        leaves = [x.detach().to(kind).requires_grad_() for x in (k, codebook)]
        loss = reference.pq_loss(*leaves, codes, power)
        loss.backward()
        results[kind] = {"loss": loss.detach()[None], "dcodebook": leaves[1].grad, "dz": leaves[0].grad}
    for name, factor in (("loss", FORWARD), ("dcodebook", BACKWARD), ("dz", BACKWARD)):
        ours = arrays.tensor(run[name], dtype, problem.D) if name == "dz" else torch.from_numpy(run[name])
        torchs = results[torch.float32][name]
        torchs = torchs.to(dtype) if name == "dz" else torchs
        assert_error_bound(f"{label} {name}", ours, torchs, results[torch.float64][name], factor)


def assert_sums(problem: Problem, dtype: torch.dtype, run: Any, label: str) -> None:
    _, k, codebook = problem.tensors(dtype)
    codes, shape = reference.pq_encode(k, codebook, 2), tuple(shape_of(problem).values())
    rounded, counts = reference.pq_stats(k.float(), codes, shape)
    exact, _ = reference.pq_stats(k.double(), codes, shape)
    assert np.array_equal(run["counts"], counts.numpy()), label
    assert_error_bound(label, torch.from_numpy(run["sums"]), rounded, exact, FORWARD)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_codes_are_those_of_the_definition(name: str, dtype: torch.dtype) -> None:
    problem = SMALL[name]
    for power in (1, 2):
        for padding in (0, 1):
            arguments = given(problem, dtype, power, padding)
            for build, seed in SCHEDULES:
                run = simt.run("pq_encode", arguments, build=build, seed=seed)
                assert not run.reports, run.text()
                assert not run.unwritten["codes"]
                assert np.array_equal(run["codes"], arguments["codes"]), f"power {power}, {build}, seed {seed}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [name for name in SMALL if name != "no rows"])
def test_loss_and_sums_are_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    problem = SMALL[name]
    for power in (1, 2):
        arguments, first = given(problem, dtype, power), None
        for build, seed in SCHEDULES:
            run = simt.run("pq_loss", arguments, build=build, seed=seed)
            assert not run.reports, run.text()
            assert not any(run.unwritten.values())
            first = first or run
            assert all(np.array_equal(first[x], run[x]) for x in ("loss", "dcodebook", "dz"))
        assert first is not None
        assert_loss(problem, dtype, power, first, name)
    first = None
    for build, seed in SCHEDULES:
        run = simt.run("pq_stats", given(problem, dtype, 2) | shape_of(problem), build=build, seed=seed)
        assert not run.reports, run.text()
        assert not any(run.unwritten.values())
        first = first or run
        assert np.array_equal(first["sums"], run["sums"])
        assert_sums(problem, dtype, run, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ptx(dtype: torch.dtype) -> None:
    problem = Problem(B=1, H=2, K=2, T=37, D=20, subspaces=3)
    for power in (1, 2):
        arguments = given(problem, dtype, power)
        codes = replay(simt.run("pq_encode", arguments, record=True), ["pq/encode.cu"], 1)["codes"]
        assert np.array_equal(codes, arguments["codes"])
        loss = replay(simt.run("pq_loss", arguments, record=True), ["pq/loss.cu"], 1)
        assert_loss(problem, dtype, power, loss, "loss")
    run = simt.run("pq_stats", given(problem, dtype, 2) | shape_of(problem), record=True)
    assert_sums(problem, dtype, replay(run, ["pq/stats.cu"], 1), "sums")


def test_float64_is_refused() -> None:
    arguments = given(CASES["plain"], torch.float32, 2)
    double = arguments | {"z": arguments["z"].astype(np.float64), "dtype": "float64"}
    with pytest.raises(RuntimeError, match="pq_encode on CUDA takes float32, float16 and bfloat16, not float64"):
        simt.run("pq_encode", double)


# number: what is wrong, the entry, a case that shows it. They stand at `simt::mutant`.
MUTANTS = {
    170: ("all heads take the first codebook", "pq_encode", "plain"),
    171: ("components behind the last are read", "pq_encode", "a last piece that is not full"),
    172: ("ties go to the highest codeword", "pq_encode", "ties"),
    175: ("the distance of z does not count", "pq_loss", "plain"),
    176: ("weights do not add up to one in the gradient", "pq_loss", "plain"),
    177: ("no barrier before a batch is written over", "pq_loss", "some chunks"),
    178: ("no barrier before a batch is added up", "pq_loss", "plain"),
    181: ("no barrier before codes are read", "pq_stats", "plain"),
    182: ("one batch row counts", "pq_stats", "plain"),
}


def assert_right(problem: Problem, entry: str, run: simt.Result, arguments: dict[str, Any], what: str) -> None:
    """What the entry gave, by its law."""
    if entry == "pq_encode":
        assert np.array_equal(run["codes"], arguments["codes"]), what
    elif entry == "pq_loss":
        assert_loss(problem, torch.float32, 2, run, what)
    else:
        assert_sums(problem, torch.float32, run, what)


@pytest.mark.mutants("pq")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, entry, name = MUTANTS[mutant]
    problem = SMALL.get(name, CASES["plain"])
    arguments = given(problem, torch.float32, 2) | shape_of(problem)
    if name == "ties":
        arguments["codebook"] = np.repeat(arguments["codebook"][:, :, :8], 2, 2)
        codebook = torch.from_numpy(arguments["codebook"])
        arguments["codes"] = pack(reference.pq_encode(problem.tensors(torch.float32)[1], codebook), 16).numpy()
    run = simt.run(entry, arguments, build="hooks", mutant=mutant)
    if run.reports:
        return
    with pytest.raises(AssertionError):
        assert_right(problem, entry, run, arguments, what)
