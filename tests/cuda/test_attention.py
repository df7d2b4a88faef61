"""The CUDA attention kernels in the CPU emulation: right, the same in every schedule, and without a report."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from longspan.ops import AttentionPattern, TokenLayout
from tests.cuda import attention_runs, simt
from tests.cuda.attention_runs import Problem, arguments, assert_correct, run
from tests.ops.test_attention import CASES as OP_CASES

P = AttentionPattern
SEEDS = (0, 1, 2, 3)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)

# The CPU engine's own cases, and those that matter for tiles of 16 to 128 rows.
# "s2 sinks" is a large one that differs from "group border inside a tile" in size alone.
OPS = {name: case for name, case in OP_CASES.items() if name != "s2 sinks"}
CASES = {name: Problem(shape, pattern, S, options) for name, (shape, S, pattern, options) in OPS.items()} | {
    # As there, with the fewest heads and tokens that show as much.
    "causal": Problem((2, 3, 1, 150, 64), P.full()),
    "window": Problem((1, 2, 1, 450, 32), P.window(200)),
    "tiles 512": Problem((1, 1, 1, 1100, 16), P.tiles([[[0], [1], [0, 2]]], tile_size=512)),
    "D 32": Problem((1, 2, 1, 150, 32), P.full()),
    "D 96": Problem((1, 2, 1, 150, 96), P.full()),
    "D 128": Problem((1, 2, 2, 150, 128), P.full()),
    "D 104 padded in the tile": Problem((1, 2, 2, 70, 104), P.full()),
    "group border inside a tile": Problem((1, 2, 1, 200, 64), P.s2(group_size=50, sinks=1)),
    "window edge inside a tile": Problem((1, 2, 1, 200, 64), P.window(37, sinks=2)),
    "low scores": Problem((1, 2, 1, 70, 64), P.full(causal=False), low=True),
    "negative scale": Problem((1, 2, 1, 70, 64), P.full(), options={"scale": -0.2}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_right_and_the_same_in_every_schedule(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    first = run(problem, dtype)
    assert_correct(problem, dtype, first, name)
    assert first.unwritten == 0
    # Another order of threads and blocks changes no bit: nothing depends on a race or on an order of sums.
    for seed in SEEDS[1:]:
        other = run(problem, dtype, seed=seed)
        assert not other.reports, "\n".join(map(str, other.reports))
        for key, value in first.values.items():
            assert torch.equal(value, other.values[key]), f"{key} differs with seed {seed}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_no_race_no_bound_no_uninitialised_read(name: str, dtype: torch.dtype) -> None:
    outcome = run(CASES[name], dtype, build="hooks", seed=1)
    assert not outcome.reports, "\n".join(map(str, outcome.reports))
    assert outcome.unwritten == 0


@pytest.mark.sweep  # hooks has exact bounds of device arrays too; this build adds local ones
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_address_sanitizer_finds_nothing(dtype: torch.dtype) -> None:
    for name in ("D 80", "packed"):
        outcome = run(CASES[name], dtype, build="asan")
        assert not outcome.reports, "\n".join(map(str, outcome.reports))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("D", [20, 40, 64, 100, 128, 200])
def test_rows_that_are_not_aligned(D: int, dtype: torch.dtype) -> None:
    problem = Problem((1, 4, 2, 90, D), P.s2(group_size=32, sinks=1))
    outcome = run(problem, dtype, padding=1 if D != 20 else 3)
    assert_correct(problem, dtype, outcome, f"D {D} unaligned")


@pytest.mark.parametrize("D", [32, 64, 80, 96, 128, 256])
def test_tensor_core_loads_have_no_bank_conflicts(D: int) -> None:
    outcome = run(Problem((1, 2, 1, 130, D), P.full()), torch.bfloat16)
    assert outcome.forward.statistics["ldmatrix"] > 0
    assert outcome.conflicts() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_offsets_beyond_two_to_the_31(dtype: torch.dtype) -> None:
    # Six rows 2^29 + 8 elements apart: the last starts beyond 2^31 elements.
    problem = Problem((1, 1, 1, 6, 64), P.full())
    outcome = run(problem, dtype, spread=(1 << 29) + 8)
    assert_correct(problem, dtype, outcome, "spread rows")
    near = run(problem, dtype)
    for key, value in near.values.items():
        assert torch.equal(value, outcome.values[key])


def test_packed_equals_separate() -> None:
    cuts = [0, 37, 37, 165, 230]
    whole = Problem((1, 4, 2, 230, 64), P.s2(group_size=64, sinks=1))
    packed = Problem(whole.shape, whole.pattern, options={"layout": TokenLayout.packed(torch.tensor(cuts))})
    together = run(packed, torch.float32).values
    given = arguments(whole, torch.float32)
    for begin, end in itertools.pairwise(cuts):
        if begin == end:
            continue
        part = given | {name: given[name][:, begin:end].copy() for name in "qkv"}  # type: ignore[index]
        alone = attention_runs.tensor(simt.run("attention_fwd", part)["out"], torch.float32, 64)
        # Tiles fall elsewhere, so sums are ordered otherwise: equal to float rounding, not to the bit.
        torch.testing.assert_close(alone, together["out"][:, :, begin:end], rtol=2e-6, atol=2e-6)


def test_float64_is_refused() -> None:
    x = np.zeros((1, 4, 1, 8))
    with pytest.raises(RuntimeError, match="attention on CUDA takes float32, float16 and bfloat16, not float64"):
        simt.run("attention_fwd", {"q": x, "k": x, "v": x, "D": 8, "dtype": "float64"})
