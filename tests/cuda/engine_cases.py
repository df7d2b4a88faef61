"""The cases of tests/cuda/rules: what each computes when it is right, and which rule must catch each planted bug."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.cuda import simt

RULES = Path(__file__).parent / "rules"
SEEDS = (0, 1, 2, 3)


def run_case(
    name: str,
    data: np.ndarray,
    shape: tuple[int, ...],
    dtype: npt.DTypeLike,
    *,
    n: int = 0,
    build: simt.Build = "plain",
    seed: int = 0,
    mutant: int = 0,
) -> simt.Result:
    """Runs the case `name` of tests/cuda/rules; its result is called "output"."""
    arguments: dict[str, simt.Argument] = {
        "case": name,
        "input": data,
        "n": n,
        "output_shape": list(shape),
        "output_dtype": np.dtype(dtype).name,
    }
    return simt.run("rule", arguments, build=build, seed=seed, mutant=mutant, library="rules")


@dataclass(frozen=True)
class Case:
    """A kernel of rules/<file>.cu with its input and what it should compute."""

    file: str
    name: str
    input: np.ndarray
    expected: np.ndarray
    n: int

    def run(self, build: simt.Build, seed: int = 0, mutant: int = 0) -> simt.Result:
        expected = self.expected
        return run_case(
            self.name, self.input, expected.shape, expected.dtype, n=self.n, build=build, seed=seed, mutant=mutant
        )

    def is_right(self, result: simt.Result) -> bool:
        return np.array_equal(result["output"], self.expected) and not result.unwritten["output"]


@functools.cache
def bug_lines(file: str, mutant: int) -> frozenset[int]:
    """The lines of rules/<file>.cu that are marked `// BUG` for the mutant."""
    lines = (RULES / f"{file}.cu").read_text(encoding="utf-8").splitlines()
    marks = ((number, re.search(r"// BUG( [0-9 ]+)?$", line)) for number, line in enumerate(lines, 1))
    return frozenset(n for n, mark in marks if mark and (mark[1] is None or str(mutant) in mark[1].split()))


@dataclass(frozen=True)
class Bug:
    """A mutant and how each build must show it: by a report of `rule`, by a wrong result ("value"), or not at all."""

    case: str
    mutant: int
    rule: str
    hooks: str = "rule"
    plain: str | None = "value"
    asan: str | None = None
    line: bool = True  # whether the report names a marked line
    seeds: tuple[int, ...] = field(default=SEEDS)

    def shown_by(self, build: simt.Build) -> str | None:
        return {"hooks": self.hooks, "plain": self.plain, "asan": self.asan}[build]


def evidence(case: Case, bug: Bug, build: simt.Build) -> list[str]:
    """Why the bug counts as found, over the seeds: empty when it was missed."""
    found = []
    for seed in bug.seeds:
        result = case.run(build, seed, bug.mutant)
        if bug.shown_by(build) == "value":
            if not case.is_right(result):
                found.append(f"seed {seed}: wrong result")
            continue
        rules = {bug.rule, "asan"} if build == "asan" else {bug.rule}
        for report in result.reports:
            lines = bug_lines(case.file, bug.mutant)
            at = report.line in lines or report.other_line in lines
            if report.rule in rules and (at or not bug.line or (build == "plain" and not report.trace)):
                found.append(f"seed {seed}: {report}")
    return found


def _numbers(count: int, low: int = 0, high: int = 1000, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(low, high, count, dtype=np.int32)


def _floats(count: int) -> np.ndarray:
    return np.random.default_rng(2).standard_normal(count).astype(np.float32)


def _case(file: str, name: str, input_: np.ndarray, expected: np.ndarray, n: int | None = None) -> Case:
    return Case(file, name, input_, np.ascontiguousarray(expected), len(input_) if n is None else n)


def _race() -> list[Case]:
    tiles, pairs, bins = _numbers(5 * 128), _numbers(128), _numbers(4 * 128, 0, 8)
    large = _numbers(100)
    last = np.zeros(32, np.int32)
    last[5:7] = 40
    return [
        _case("race", "reverse", tiles, tiles.reshape(-1, 128)[:, ::-1].reshape(-1)),
        _case("race", "exchange", pairs, pairs[np.arange(128) ^ 5]),
        _case("race", "relay", pairs[:1], pairs[:1]),
        _case("race", "late_write", np.array([40], np.int32), last),
        _case("race", "histogram", bins, np.bincount(bins, minlength=8).astype(np.int32)),
        _case("race", "bytes", pairs[:1], np.arange(64, dtype=np.int32)),
        _case("race", "large_copy", large, large),
    ]


def _race_blocks() -> list[Case]:
    x = _numbers(256)
    blocks = np.repeat(np.arange(8, dtype=np.int32), 32)
    return [
        _case("race_blocks", "total", x, np.array([x.sum()], np.int32)),
        _case("race_blocks", "read_total", x, np.zeros(1, np.int32)),
        _case("race_blocks", "shift", x, np.append(x[1:], 0).astype(np.int32)),
        _case("race_blocks", "overlap", x, np.full(256, 7, np.int32)),
        _case("race_blocks", "reread", x, np.full(256, x[0])),
        _case("race_blocks", "two_launches", x, blocks[::-1]),
    ]


def _bounds() -> list[Case]:
    x, floats = _numbers(32), _floats(90)
    table = np.array([3, 1, 4, 1] * 8, np.int32)
    return [
        _case("bounds", "shared_static", x, x),
        _case("bounds", "shared_dynamic", x, x[::-1]),
        _case("bounds", "global", _numbers(90), _numbers(90)),
        _case("bounds", "tail", floats, 2 * floats),
        _case("bounds", "far_rows", x, np.arange(32, dtype=np.float32), n=5000),
        _case("bounds", "stale", x, x),
        _case("bounds", "pointers", x, x + table),
    ]


def _barrier() -> list[Case]:
    t = np.arange(128, dtype=np.int32)
    votes = np.array([1, 2] * 64, np.int32)
    x = _numbers(100)
    return [
        _case("barrier", "two_barriers", t, t),
        _case("barrier", "counted", t, t),
        _case("barrier", "early_exit", x, x[::-1]),
        _case("barrier", "instantiations", t, t + 1),
        _case("barrier", "votes", votes, np.full(128, 128 * 4 + 2, np.int32)),
    ]


def _warp() -> list[Case]:
    x = _numbers(32)
    lanes = np.arange(32)
    swapped = x[lanes ^ 1]
    low = np.where(lanes < 16, swapped, x)
    return [
        _case("warp", "skip", x, x + swapped),
        _case("warp", "own_mask", x, np.full(32, x[0])),
        _case("warp", "inactive", x[:24], low[:24]),
        _case("warp", "returned", x[:20], swapped[:20]),
        _case("warp", "two_shuffles", x, swapped),
        _case("warp", "shuffle_and_vote", x, swapped),
    ]


def _others() -> list[Case]:
    x, floats = _numbers(64), _floats(128)
    t = np.arange(32, dtype=np.int32)
    quads = _floats(128)
    fours = quads.reshape(32, 4)
    sums = ((fours[:, 0] + fours[:, 1]) + fours[:, 2]) + fours[:, 3]
    places = [
        x + 10 * y + 100 * z + 1000 * i + 10000 * j + 100000 * k
        for z in range(4)
        for y in range(3)
        for x in range(2)
        for k in range(2)
        for j in range(3)
        for i in range(5)
    ]
    return [
        _case("initialisation", "shared", floats, floats.reshape(-1, 32)[:, ::-1].reshape(-1)),
        _case("initialisation", "accumulate", floats[:32], floats[:32]),
        _case("undefined", "vector_load", np.append(quads, np.zeros(4, np.float32)), sums),
        _case("undefined", "local_array", x[:32], 2 * x[:32]),
        _case("undefined", "shift_count", t, np.full(32, 31, np.int32)),
        _case("undefined", "divide", x[:32], x[:32] // 4),
        _case("undefined", "trap", t, np.ones(32, np.int32)),
        _case("launch", "number", t, np.arange(150, dtype=np.int32), n=150),
        _case("launch", "static_bytes", t, np.ones(32, np.int32)),
        _case("launch", "places", t, np.array(places, np.int32)),
        _case("copies", "misuse", floats, floats),
        *(_case("copies", "pipeline", _floats(n), 2 * _floats(n)) for n in (5 * 128 - 3,)),
        _swizzle(),
    ]


def _swizzle() -> Case:
    """Register m of lane i holds two elements of row m % 2 * 8 + i // 4, from column m // 2 * 8 + i % 4 * 2."""
    tile = np.random.default_rng(3).integers(0, 1 << 16, (16, 64), dtype=np.uint16)
    expected = np.zeros((4, 32), np.uint32)
    for m in range(4):
        for lane in range(32):
            row, column = m % 2 * 8 + lane // 4, m // 2 * 8 + lane % 4 * 2
            expected[m, lane] = int(tile[row, column]) | int(tile[row, column + 1]) << 16
    return _case("tensor_core", "swizzle", tile, expected)


def _products() -> list[Case]:
    """Small integers: exact in both types and in every order of summation."""
    rng = np.random.default_rng(4)
    a, b = rng.integers(-8, 9, (16, 16)), rng.integers(-8, 9, (8, 16))
    both = np.concatenate([a, b]).astype(np.float32)
    expected = (a @ b.T).astype(np.float32)
    bf16 = (both.view(np.uint32) >> 16).astype(np.uint16)
    return [
        _case("tensor_core", "product_bf16", bf16, expected),
        _case("tensor_core", "product_f16", both.astype(np.float16), expected),
    ]


MAKERS: tuple[Callable[[], list[Case]], ...] = (_race, _race_blocks, _bounds, _barrier, _warp, _others, _products)
CASES: dict[str, Case] = {case.name: case for make in MAKERS for case in make()}
