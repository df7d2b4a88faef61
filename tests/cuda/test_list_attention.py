"""The CUDA kernels of attention over lists in the CPU emulation: right, the same in every schedule, as PTX."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from longspan.ops.reference import list_attention as reference
from tests.cuda import arrays, simt
from tests.cuda.replay import replay
from tests.laws import BACKWARD, FORWARD, assert_error_bound
from tests.ops.attention_cases import functional, inputs, run
from tests.ops.test_list_attention import random_lists

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
FACTORS = {"out": FORWARD, "lse": FORWARD, "dq": BACKWARD, "dk": BACKWARD, "dv": BACKWARD}
SCHEDULES: tuple[tuple[simt.Build, int], ...] = (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1))
# (B, H, K, T, D), S, slots
SHAPES = {
    "plain": ((2, 4, 2, 9, 16), 11, 5),
    "odd D": ((1, 2, 1, 6, 45), 9, 4),
    "wide heads": ((1, 1, 1, 4, 256), 5, 3),
    "many keys": ((1, 1, 1, 5, 8), 600, 20),
}


def problem(name: str, dtype: torch.dtype) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    (B, H, K, T, D), S, slots = SHAPES[name]
    return inputs(B, H, K, T, D, S, dtype), random_lists(B, H, T, S, slots)


def both(name: str, dtype: torch.dtype, launch: Any, softcap: float = 0.0) -> dict[str, torch.Tensor]:
    """Results of forward, transposed lists and backward; `launch(entry, arguments)` runs one."""
    tensors, lists = problem(name, dtype)
    D, S = tensors[0].shape[3], tensors[1].shape[2]
    given: dict[str, Any] = {x: arrays.bits(t.contiguous(), 1) for x, t in zip("qkv", tensors, strict=True)}
    given |= {"indices": lists.numpy(), "dtype": arrays.NAMES[dtype], "D": D, "scale": D**-0.5, "softcap": softcap}
    forward = launch("list_attention_fwd", given)
    transposed = launch("list_transpose", {"indices": lists.numpy(), "keys": S})
    starts, rows = reference.list_transpose(lists, S)
    assert np.array_equal(transposed["starts"], starts.numpy())
    assert np.array_equal(transposed["rows"], rows.numpy())
    weight, lse_weight = functional(tensors, torch.float32)
    lse = torch.from_numpy(forward["lse"])
    given |= {"out": forward["out"], "lse": forward["lse"], "dout": arrays.bits(weight.to(dtype), 1)}
    given |= {"dlse": torch.where(torch.isinf(lse), 0.0, lse_weight).numpy()}
    given |= {"starts": transposed["starts"], "rows": transposed["rows"]}
    backward = launch("list_attention_bwd", given)
    found = {"out": arrays.tensor(forward["out"], dtype, D), "lse": lse}
    return found | {x: arrays.tensor(backward[x], dtype, D) for x in ("dq", "dk", "dv")}


def assert_correct(name: str, dtype: torch.dtype, found: dict[str, torch.Tensor], softcap: float = 0.0) -> None:
    tensors, lists = problem(name, dtype)
    options = {"softcap": softcap or None}
    exact = run(reference.list_attention, tensors, torch.float64, lists, **options)
    rounded = run(reference.list_attention, tensors, dtype, lists, **options)
    for key, value in found.items():
        assert_error_bound(f"{name} {key}", value, rounded[key], exact[key], FACTORS[key])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
def test_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    first: dict[str, torch.Tensor] = {}
    for build, seed in SCHEDULES:

        def launch(entry: str, given: dict[str, Any], build: simt.Build = build, seed: int = seed) -> simt.Result:
            result = simt.run(entry, given, build=build, seed=seed)
            assert not result.reports, result.text()
            return result

        found = both(name, dtype, launch)
        first = first or found
        assert all(torch.equal(first[key], found[key]) for key in found), f"{build}, seed {seed}"
    assert_correct(name, dtype, first)


def test_a_soft_cap() -> None:
    assert_correct("plain", torch.float32, both("plain", torch.float32, simt.run, 2.0), 2.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ptx(dtype: torch.dtype) -> None:
    def launch(entry: str, given: dict[str, Any]) -> Any:
        source = "transpose" if entry == "list_transpose" else "list_attention"
        return replay(simt.run(entry, given, record=True), [f"list_attention/{source}.cu"], 1)

    assert_correct("plain", dtype, both("plain", dtype, launch))


# number: what is wrong. They stand at `simt::mutant`.
MUTANTS = {
    220: "the sum is not rescaled",
    221: "all heads read the values of the first",
    222: "the row term of the softmax's gradient is left out",
    223: "one head of a group counts",
    225: "no barrier before keys are counted",
    226: "no barrier before totals are read",
    227: "no barrier between lists",
}


@pytest.mark.mutants("list_attention")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    name, reports = "many keys" if mutant in (225, 226, 227) else "plain", []

    def launch(entry: str, given: dict[str, Any]) -> simt.Result:
        result = simt.run(entry, given, build="hooks", mutant=mutant)
        reports.extend(result.reports)
        return result

    try:
        found = both(name, torch.float32, launch)
    except AssertionError:
        return
    if not reports:
        with pytest.raises(AssertionError):
            assert_correct(name, torch.float32, found)
