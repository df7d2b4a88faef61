"""Magnitudes ranked by the CUDA kernels in the CPU emulation: integers of sorting and of the CPU, in every schedule; as
PTX.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from longspan import kernels
from tests.cuda import arrays, simt
from tests.cuda.replay import replay

CHUNK = 61440  # elements a block
ALL = np.iinfo(np.int64).max
LETTERS = {torch.float32: "f", torch.bfloat16: "b", torch.float16: "h"}
F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
SCHEDULES: tuple[tuple[simt.Build, int], ...] = (("plain", 0), ("plain", 1), ("plain", 2), ("plain", 3), ("hooks", 1))
SOURCES = ["magnitude/magnitude.cu"]


@dataclass(frozen=True)
class Case:
    """Tensors, the group of each, and the ranks that are asked for; `skip` elements lie before each tensor."""

    tensors: list[Tensor]
    groups: list[int]
    wanted: list[int]
    skip: list[int] = field(default_factory=list)

    def arguments(self) -> dict[str, Any]:
        """What the entries take."""
        found: dict[str, Any] = {}
        for i, x in enumerate(self.tensors):
            skip = self.skip[i] if self.skip else 0
            found[f"x{i}"] = arrays.bits(torch.cat([torch.full((skip,), float("nan")).to(x.dtype), x]))
        letters = "".join(LETTERS[x.dtype] for x in self.tensors)
        return found | {"x_dtypes": letters, "groups": self.groups, "skip": self.skip, "count": len(self.wanted)}

    def group(self, g: int) -> tuple[np.ndarray, np.ndarray, bool]:
        """Bits of the magnitudes of a group in order, their values in float64, and whether they are float16."""
        members = [x for x, of in zip(self.tensors, self.groups, strict=True) if of == g]
        bits = [own_bits(x) for x in members]
        values = [x.abs().double().numpy() for x in members]
        if not members:
            return np.zeros(0, np.int64), np.zeros(0), False
        return np.concatenate(bits), np.concatenate(values), members[0].dtype == F16

    def squares(self) -> np.ndarray:
        """Of whole groups."""
        return np.array([total(self.group(g)[1]) for g in range(len(self.wanted))])


def own_bits(x: Tensor) -> np.ndarray:
    """Without the sign; those of 16-bit dtypes in the upper half."""
    if x.dtype == F32:
        return x.view(torch.int32).numpy().astype(np.int64) & 0x7FFFFFFF
    return (x.view(torch.int16).numpy().astype(np.int64) & 0x7FFF) << 16


def total(values: np.ndarray) -> float:
    """Sum of squares, rounded once."""
    squares = values * values
    return math.fsum(squares) if np.isfinite(squares).all() else float(squares.sum())


def ranked(case: Case, exact: bool) -> dict[str, np.ndarray]:
    """The outputs of kth_magnitude by sorting."""
    rows = []
    for g, asked in enumerate(case.wanted):
        bits, values, half = case.group(g)
        if not len(bits):
            rows.append((0, 0, 0, 0.0, 0.0))
            continue
        wanted = min(max(asked, 1), len(bits))
        limit = np.sort(bits)[::-1][wanted - 1]
        above, equal = bits > limit, np.flatnonzero(bits == limit)
        need = wanted - above.sum()
        cut = equal[need - 1] + 1 if exact and need < len(equal) else ALL
        kept = above | ((bits == limit) & (np.arange(len(bits)) < cut) & (limit > 0))
        shown = (
            np.array([limit >> 16], np.uint16).view(np.float16).astype(np.float32).view(np.int32)[0] if half else limit
        )
        rows.append((shown, cut if limit else 0, kept.sum(), total(values[kept]), total(values)))
    columns = list(zip(*rows, strict=True))
    return {
        "bits": np.array(columns[0], np.int32),
        "cut": np.array(columns[1], np.int64),
        "kept": np.array(columns[2], np.int64),
        "squares": np.array(columns[3:], np.float64),
    }


def assert_squares(found: np.ndarray, expected: np.ndarray, label: str) -> None:
    """Sums of at most some 10^5 doubles in any order, and infinities where they are."""
    assert np.array_equal(np.isnan(found), np.isnan(expected)), label
    with np.errstate(invalid="ignore"):
        close = np.abs(found - expected) <= 1e-12 * np.abs(expected)
    assert np.all(close | (found == expected) | np.isnan(expected)), f"{label}: {found} instead of {expected}"


def random(size: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)).to(dtype)


def special(dtype: torch.dtype) -> Tensor:
    """Denormals, zeros of both signs, the largest numbers, infinities and not-a-numbers."""
    word = torch.int32 if dtype == F32 else torch.int16
    bits = {
        F32: [0, -(2**31), 1, -(2**31) + 5, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, -1],
        BF16: [0, -(2**15), 1, -(2**15) + 5, 0x7F, 0x80, 0x7F7F, 0x7F80, 0x7F81, 0x7FC0, -1],
        F16: [0, -(2**15), 1, -(2**15) + 5, 0x3FF, 0x400, 0x7BFF, 0x7C00, 0x7E01, 0x7E00, -1],
    }[dtype]
    return torch.tensor(bits, dtype=word).view(dtype)


def tied(size: int, dtype: torch.dtype) -> Tensor:
    """Few magnitudes, many of each, either sign."""
    numbers = torch.arange(size)
    return ((numbers * 7919 % 5) * (1 - 2 * (numbers % 2))).to(dtype) / 4


def one_of(dtype: torch.dtype) -> dict[str, Case]:
    """Cases of one dtype."""
    sizes = [1, 3, 8, 31, 257, 4099, 20481]
    return {
        "ragged": Case([random(n, dtype, n) for n in sizes], list(range(7)), [1, 2, 3, 31, 200, 1000, 20481]),
        "one group": Case([random(n, dtype, n) for n in sizes], [0] * 7, [9000]),
        "off 16 bytes": Case([random(5000, dtype, i) for i in range(3)], [0, 0, 1], [700, 30], [1, 3, 2]),
        "equal": Case([torch.full((9000,), -0.7, dtype=dtype)], [0], [4321]),
        "zeros": Case([torch.zeros(5000, dtype=dtype), random(40, dtype)], [0, 0], [50]),
        "zero": Case([torch.zeros(5000, dtype=dtype)], [0], [50]),
        "sparse": Case([random(9000, dtype) * (torch.arange(9000) % 7 == 0)], [0], [300]),
        "tied": Case([tied(3000, dtype), tied(2000, dtype)], [0, 0], [1777]),
        "two chunks": Case([tied(100, dtype), tied(CHUNK + 900, dtype)], [0, 0], [(CHUNK + 1000) // 5 * 4 - 88]),
        "denormals": Case([random(3000, dtype) * (1e-6 if dtype == F16 else 1e-39)], [0], [777]),
        "not finite": Case([special(dtype), random(100, dtype)], [0, 0], [1]),
        "signalling rank": Case([special(dtype), random(100, dtype)], [0, 0], [3]),
        "finite rank": Case([special(dtype), random(100, dtype)], [0, 0], [60]),
    }


# Lower bins that are counted in one place.
SAME_SLOT = torch.tensor([x for x in range(1 << 16) if (x ^ x >> 5) & 2047 == 5], dtype=torch.int32)
SHARED = {
    "mixed": Case(
        [
            random(3001, BF16),
            random(900, F16),
            random(2500, F32),
            random(0, F32),
            random(1100, BF16, 3),
            random(70, F16),
        ],
        [3, 0, 3, 0 + 1, 1, 0],
        [200, 500, 1, 4444],
    ),
    "no elements": Case([random(100, F32)], [1], [5, 7]),
    "out of range": Case([random(100, F32), random(100, BF16), tied(50, F16)], [0, 1, 2], [-3, 101, 1 << 40]),
    "once 16 bits": Case([random(6000, BF16).float(), random(6000, F16).float()], [0, 1], [600, 3000]),
    "crowded slot": Case([(0x3F800000 + SAME_SLOT[torch.arange(3000) % 7]).view(F32)], [0], [1500]),
    # Units whose elements are equal, another magnitude each.
    "crowded warp": Case([torch.arange(1, 1025).repeat_interleave(8).to(F32) / 16], [0], [1000]),
}
CASES = {f"{name}, {dtype}": case for dtype in (F32, BF16, F16) for name, case in one_of(dtype).items()} | SHARED
MANY = Case(  # than one launch takes
    [random(1 + i % 3, (F32, BF16)[i % 2], i) for i in range(950)], [i % 5 for i in range(950)], [1, 7, 99, 300, 2]
)
CUDA_ALONE = {"no elements", "out of range"}  # the CPU refuses them, and float16 among plain arrays
CUDA_ALONE |= {name for name, case in CASES.items() if any(x.dtype == F16 for x in case.tensors)}


def assert_ranked(case: Case, exact: bool, norms: bool, run: Any, label: str) -> None:
    expected = ranked(case, exact)
    if not norms:
        finite = np.isfinite(expected["squares"][1])
        expected["squares"] = np.stack([np.zeros(len(finite)), np.where(finite, 0.0, np.nan)])
    for name in ("bits", "cut", "kept"):
        assert np.array_equal(run[name], expected[name]), f"{label}: {name} {run[name]} instead of {expected[name]}"
    assert_squares(run["squares"], expected["squares"], label)


@pytest.mark.parametrize("name", CASES)
def test_ranks_are_those_of_sorting_in_every_schedule(name: str) -> None:
    case, first = CASES[name], None
    for build, seed in SCHEDULES:
        exact = norms = seed != 3
        arguments = case.arguments() | {"wanted": np.array(case.wanted), "exact": exact, "norms": norms}
        run = simt.run("kth_magnitude", arguments, build=build, seed=seed)
        assert not run.reports, run.text()
        assert build == "plain" or not any(run.unwritten.values())
        assert_ranked(case, exact, norms, run, f"{build}, seed {seed}")
        if exact:
            first = first or run
            assert np.array_equal(first["squares"], run["squares"], equal_nan=True)
    if name in CUDA_ALONE:
        return
    assert first is not None
    cpu = kernels.kth_magnitude(case.tensors, case.groups, torch.tensor(case.wanted))
    for label, ours, theirs in zip(
        ("bits", "cut", "kept"), (first["bits"], first["cut"], first["kept"]), cpu, strict=False
    ):
        assert np.array_equal(ours, theirs), label
    assert_squares(first["squares"], cpu[3], "the CPU's")


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_histograms_are_those_of_counting(name: str, lower: bool) -> None:
    case = CASES[name]
    found = [case.group(g) for g in range(len(case.wanted))]
    bins = np.array([np.sort(bits)[len(bits) // 2] >> 16 if len(bits) else 7 for bits, _, _ in found], np.int32)
    arguments = case.arguments() | ({"bins": bins} if lower else {})
    first = None
    for build, seed in (("plain", 0), ("plain", 1), ("hooks", 2)):
        run = simt.run("magnitude_histogram", arguments, build=build, seed=seed)
        assert not run.reports, run.text()
        assert not any(run.unwritten.values())
        first = first or run
        assert np.array_equal(first["squares"], run["squares"], equal_nan=True)
        for g, (bits, values, _) in enumerate(found):
            inside = bits >> 16 == bins[g] if lower else np.ones(len(bits), bool)
            counted = np.bincount(bits[inside] & 0xFFFF if lower else bits >> 16, minlength=run["counts"].shape[1])
            assert np.array_equal(run["counts"][g], counted), f"group {g}"
            of = values[bits >> 16 > bins[g]] if lower else values
            assert_squares(run["squares"][g : g + 1], np.array([total(of)]), f"group {g}")
    if any(x.dtype == F16 for x in case.tensors):
        return
    counts, squares = kernels.magnitude_histogram(case.tensors, case.groups, len(found), bins if lower else None)
    assert np.array_equal(first["counts"], counts)
    assert_squares(first["squares"], squares, "the CPU's")


@pytest.mark.parametrize("name", CASES)
def test_squares_are_those_of_float64(name: str) -> None:
    case, first = CASES[name], None
    for build, seed in (SCHEDULES[1], SCHEDULES[-1]):
        run = simt.run("squared_norms", case.arguments(), build=build, seed=seed)
        assert not run.reports, run.text()
        assert build == "plain" or not any(run.unwritten.values())
        first = first or run
        assert np.array_equal(first["squares"], run["squares"], equal_nan=True)
        assert_squares(run["squares"], case.squares(), f"{build}, seed {seed}")
        assert run.statistics["launches"] == 2


def test_more_tensors_than_one_launch_takes() -> None:
    run = simt.run("kth_magnitude", MANY.arguments() | {"wanted": np.array(MANY.wanted)})
    assert not run.reports, run.text()
    assert run.statistics["launches"] == 1 + 2 + 1 + 2 + 1 + 2 + 1
    assert_ranked(MANY, True, True, run, "950 tensors")
    squares = simt.run("squared_norms", MANY.arguments())
    assert not squares.reports, squares.text()
    assert squares.statistics["launches"] == 2 + 1
    assert_squares(squares["squares"], MANY.squares(), "950 tensors")


def test_more_groups_than_one_launch_takes() -> None:
    case = Case([random(1 + i % 3, BF16, i) for i in range(630)], list(range(629, -1, -1)), [1] * 630)
    run = simt.run("kth_magnitude", case.arguments() | {"wanted": np.array(case.wanted)})
    assert not run.reports, run.text()
    assert run.statistics["launches"] == 1 + 1 + 2 + 1 + 2
    assert_ranked(case, True, True, run, "630 groups")


def test_what_is_launched_does_not_grow_with_the_tensors() -> None:
    for dtype, launches in ((F32, 7), (BF16, 5)):
        for count in (1, 40):
            case = Case([random(10, dtype) for _ in range(count)], list(range(count)), [3] * count)
            run = simt.run("kth_magnitude", case.arguments() | {"wanted": np.array(case.wanted)})
            assert run.statistics["launches"] == launches


@pytest.mark.parametrize(
    "name", ["tied, torch.bfloat16", "finite rank, torch.bfloat16", "mixed", "off 16 bytes, torch.float16"]
)
def test_ptx(name: str) -> None:
    case = CASES[name]
    run = simt.run("kth_magnitude", case.arguments() | {"wanted": np.array(case.wanted)}, record=True)
    assert_ranked(case, True, True, replay(run, SOURCES, 1), "PTX")
    histogram = simt.run("magnitude_histogram", case.arguments(), record=True)
    again = replay(histogram, SOURCES, 1)
    assert np.array_equal(again["counts"], histogram["counts"])
    assert np.array_equal(again["squares"], histogram["squares"], equal_nan=True)
    squares = simt.run("squared_norms", case.arguments(), record=True)
    assert np.array_equal(replay(squares, SOURCES, 1)["squares"], squares["squares"], equal_nan=True)


# number: what is wrong, a case that shows it. They stand at `simt::mutant`.
MUTANTS = {
    300: ("tensors off 16 bytes are read 16 bytes at a time", "off 16 bytes, torch.float32"),
    301: ("elements behind the last are counted", "ragged, torch.float32"),
    302: ("lanes with equal elements each take the first lane's", "crowded warp"),
    303: ("no barrier before a block's sums are read", "ragged, torch.float32"),
    304: ("no barrier before a search writes over its sums", "ragged, torch.bfloat16"),
    305: ("the cut is numbered within its tensor", "tied, torch.bfloat16"),
    306: ("the zeros of one lane count", "sparse, torch.float32"),
    307: ("no barrier before counters are added to", "ragged, torch.bfloat16"),
    308: ("no barrier before counters are read", "ragged, torch.bfloat16"),
    309: ("a slot counts every bin that falls on it", "crowded slot"),
    310: ("no barrier before slots are read", "once 16 bits"),
    311: ("wanted is not clamped", "out of range"),
    312: ("the second level adds to the counts of the first", "ragged, torch.float32"),
    313: ("the second level looks for the rank of the first", "ragged, torch.float32"),
    314: ("the cut's chunk is searched for the rank of the group", "two chunks, torch.bfloat16"),
    315: ("each launch writes its sums over the first one's", "more than a launch"),
}
HISTOGRAM = {306}  # ranks do not depend on the number of zeros
SQUARES = {315}


@pytest.mark.mutants("magnitude")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name = MUTANTS[mutant]
    case = MANY if mutant in SQUARES else CASES[name]
    entry = "magnitude_histogram" if mutant in HISTOGRAM else "squared_norms" if mutant in SQUARES else "kth_magnitude"
    run = simt.run(entry, case.arguments() | {"wanted": np.array(case.wanted)}, build="hooks", mutant=mutant)
    if run.reports:
        return
    if mutant in HISTOGRAM:
        assert not np.array_equal(run["counts"][0], np.bincount(case.group(0)[0] >> 16, minlength=1 << 15)), what
        return
    if mutant in SQUARES:
        with pytest.raises(AssertionError):
            assert_squares(run["squares"], case.squares(), what)
        return
    with pytest.raises(AssertionError):
        assert_ranked(case, True, True, run, what)
