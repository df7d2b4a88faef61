"""The source engine computes what CUDA defines: warp operations, scalar functions, atomics, tensor cores."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.cuda import simt
from tests.cuda.engine_cases import CASES, bug_lines, run_case

LANES = np.arange(64)
ALL = 0xFFFFFFFF


def segment(lanes: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last lane of each lane's segment of `width` lanes."""
    first = lanes // width * width
    return first, first + width - 1


@pytest.mark.parametrize("width", [32, 16, 8, 4, 2, 1])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_warp_operations(width: int, seed: int) -> None:
    x = np.random.default_rng(width).integers(0, 8, 64).astype(np.int32)
    x[32:] = 3  # the second warp agrees
    first, last = segment(LANES, width)
    warp, lane = LANES // 32 * 32, LANES % 32
    up, down, other = LANES - 3, LANES + 3, warp + (lane ^ 9)

    def per_warp(function: object) -> list[int]:
        return [function(x[start : start + 32].astype(np.int64)) for start in warp]  # type: ignore[operator]

    bits = 1 << np.arange(32, dtype=np.int64)
    match = [int(bits[x[start : start + 32] == value].sum()) for start, value in zip(warp, x, strict=True)]
    agree = np.array(per_warp(lambda w: int((w == w[0]).all())))
    expected: list[Any] = [
        x[first + lane * 3 % width],
        x[np.where(up < first, LANES, up)],
        x[np.where(down > last, LANES, down)],
        x[np.where(other > last, LANES, other)],
        per_warp(lambda w: bits[w > 2].sum()),
        per_warp(lambda w: (w > 6).any()),
        per_warp(lambda w: (w > 0).all()),
        match,
        np.where(agree, ALL + 1, 0),
        per_warp(np.sum),
        per_warp(lambda w: w.min() - 4),
        per_warp(lambda w: (w - 4 < 0).any() and ((w - 4) % (1 << 32)).max() == ALL),
        per_warp(np.bitwise_and.reduce),
        per_warp(np.bitwise_or.reduce),
        per_warp(np.bitwise_xor.reduce),
        x[warp + 5] * 4 + 1,
    ]
    result = run_case("values", x, (16, 64), np.int32, n=width, seed=seed)
    assert not result.reports, result.text()
    for row, (found, wanted) in enumerate(zip(result["output"], expected, strict=True)):
        wanted32 = np.asarray(wanted).astype(np.int64).astype(np.uint32).view(np.int32)
        np.testing.assert_array_equal(found, wanted32, err_msg=f"row {row}")


def test_integer_functions() -> None:
    rng = np.random.default_rng(5)
    x = rng.integers(0, 1 << 32, 32, dtype=np.uint64)
    x[:6] = [0, 1, ALL, 1 << 31, 0x4F000000, 0x7FC00000]  # bounds; 2^31 and NaN as floats
    y = x[::-1]
    signed = [int(v) - (1 << 32 if v >> np.uint64(31) else 0) for v in x]
    floats = x.astype(np.uint32).view(np.float32).astype(np.float64)

    def converted(rounding: object) -> list[int]:
        rounded = [0 if np.isnan(f) else max(-(2**31), min(2**31 - 1, rounding(f))) for f in floats]  # type: ignore[operator]
        return [r % (1 << 32) for r in rounded]

    expected: list[Any] = [
        [int(v).bit_count() for v in x],
        [32 - int(v).bit_length() for v in x],
        [(int(v) & -int(v)).bit_length() for v in x],
        [int(f"{int(v):032b}"[::-1], 2) for v in x],
        [int(a) * int(b) >> 32 for a, b in zip(x, y, strict=True)],
        [a * b >> 32 for a, b in zip(signed, signed[::-1], strict=True)],
        [int(a) & 0xFFFF | (int(b) & 0xFFFF) << 16 for a, b in zip(x, y, strict=True)],
        [_permuted(int(a), int(b)) for a, b in zip(x, y, strict=True)],
        [((int(b) << 32 | int(a)) << 7 >> 32) & ALL for a, b in zip(x, y, strict=True)],
        [(int(b) << 32 | int(a)) >> 7 & ALL for a, b in zip(x, y, strict=True)],
        [min(a, b) for a, b in zip(signed, signed[::-1], strict=True)],
        np.maximum(x, y),
        converted(lambda f: int(np.clip(np.rint(f), -1e30, 1e30))),
        converted(lambda f: int(np.clip(np.trunc(f), -1e30, 1e30))),
        x,
    ]
    result = run_case("integers", x.astype(np.uint32), (15, 32), np.uint32)
    for row, (found, wanted) in enumerate(zip(result["output"], expected, strict=True)):
        np.testing.assert_array_equal(found, [int(w) % (1 << 32) for w in wanted], err_msg=f"row {row}")


def _permuted(low: int, high: int) -> int:
    """__byte_perm(low, high, 0x3276): bytes 6, 7, 2, 3 of high:low, lowest first."""
    eight = (high << 32 | low).to_bytes(8, "little")
    return int.from_bytes(bytes(eight[i] for i in (6, 7, 2, 3)), "little")


def test_float_functions() -> None:
    x = np.random.default_rng(6).uniform(-3, 3, 32).astype(np.float32)
    x[:3] = [1.0, -130.0, 1 + 2.0**-8]  # 2^-130 is subnormal: flushed; the last is halfway between two bfloat16
    result = run_case("floats", x, (10, 32), np.float32)
    out = result["output"].astype(np.float64)
    wide = x.astype(np.float64)
    flushed = np.where(wide < -126, 0, np.exp2(wide))
    half = x.astype(np.float16).astype(np.float64)
    expected = [flushed, np.exp(wide), 1 / np.abs(wide), 1 / wide, np.clip(wide, 0, 1), wide * wide - 1]
    for row, wanted in enumerate(expected):
        np.testing.assert_allclose(out[row], wanted, rtol=2e-6, atol=1e-6, err_msg=f"row {row}")
    pairs = result["output"][6].view(np.uint32)
    np.testing.assert_array_equal(pairs >> 16, 0x4000)  # 2.0
    np.testing.assert_array_equal(pairs & 0xFFFF, bfloat16(x))
    np.testing.assert_array_equal(out[7], half)
    np.testing.assert_array_equal(result["output"][8].view(np.uint32) >> 16, bfloat16(x))
    np.testing.assert_array_equal(result["output"][9], x)  # fmaxf ignores NaN


def bfloat16(x: np.ndarray) -> np.ndarray:
    """Bits of the nearest bfloat16, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint32)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_atomics(seed: int) -> None:
    x = np.random.default_rng(7).integers(-100, 100, 32).astype(np.int32)
    expected: list[Any] = [
        x.sum(),
        -x.sum(),
        min(0, x.min()),
        max(0, x.max()),
        0,
        np.bitwise_or.reduce(x),
        np.bitwise_xor.reduce(x),
        5,
        77,
        0,
        32 % 10,
        (-32) % 10,
    ]
    result = run_case("atomics", x, (12,), np.int32, n=12, seed=seed)
    assert not result.reports, result.text()
    np.testing.assert_array_equal(result["output"], expected)


def test_ldmatrix() -> None:
    """Lane i's registers hold elements 2i and 2i + 1 of each 8x8 matrix in row order, or of its transpose."""
    tile = np.random.default_rng(8).integers(0, 1 << 16, (4, 8, 8), dtype=np.uint16)
    result = run_case("ldmatrix", tile, (2, 32, 4), np.uint32)
    for form, matrices in enumerate((tile, tile.transpose(0, 2, 1))):
        pairs = np.ascontiguousarray(matrices).reshape(4, 32, 2)
        np.testing.assert_array_equal(result["output"][form].T, pairs[..., 0] | pairs[..., 1].astype(np.uint32) << 16)


def test_products_are_summed_in_float() -> None:
    """One mma on random bfloat16 values against float64: the error of a float sum of 16 exact products."""
    rng = np.random.default_rng(9)
    both = (rng.standard_normal((24, 16)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    wide = (both.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    found = run_case("product_bf16", both, (16, 8), np.float32)["output"]
    exact = wide[:16] @ wide[16:].T
    bound = 16 * 2.0**-24 * (np.abs(wide[:16]) @ np.abs(wide[16:].T))
    assert (np.abs(found - exact) <= bound).all()


@pytest.mark.parametrize("build", simt.BUILDS)
def test_bank_conflicts_of_ldmatrix(build: simt.Build) -> None:
    case = CASES["swizzle"]
    right, wrong = case.run(build), case.run(build, mutant=1)
    line = next(iter(bug_lines("tensor_core", 1)))
    assert right.statistics["ldmatrix"] == wrong.statistics["ldmatrix"] == 1
    assert right.statistics["ldmatrix_conflicts"] == 0
    # Eight rows in one bank group: seven passes more, for each of four matrices.
    assert wrong.statistics["ldmatrix_conflicts"] == 28
    assert case.is_right(wrong)
    at = {(c.line, c.requests, c.extra_passes) for c in wrong.conflicts}
    assert (line, 1, 28) in at
    assert line not in {c.line for c in right.conflicts}


@pytest.mark.parametrize(("stride", "extra"), [(1, 0), (2, 1), (4, 3), (32, 31), (33, 0), (0, 0)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_bank_conflicts_of_loads_and_stores(stride: int, extra: int, seed: int) -> None:
    """Lane i at word i * stride: conflicts by the stride's power of two; one word for all is a broadcast."""
    result = run_case("strided", np.zeros(1, np.int32), (32,), np.int32, n=stride, build="hooks", seed=seed)
    assert not result.reports, result.text()
    found = {c.line: (c.requests, c.extra_passes) for c in result.conflicts}
    assert set(found.values()) == ({(3, 3 * extra)} if extra else set())
    assert result.statistics["shared_conflicts"] == 3 * extra


def test_wide_stores_have_no_conflicts_by_themselves() -> None:
    """16 bytes a lane are served by quarters of the warp, 8 bytes by halves. (Loads of vectors are split by g++, which
    counts their parts: an upper bound.)"""
    result = run_case("wide", np.zeros(1, np.int32), (32,), np.float32, build="hooks")
    assert not result.reports, result.text()
    assert result.statistics["shared_requests"] > 0
    assert result.statistics["shared_conflicts"] == 0
