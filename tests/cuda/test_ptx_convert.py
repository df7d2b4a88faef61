"""Conversions of the PTX engine, against exact rational numbers on ties, limits and random values."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from tests.cuda.ptx import UnsupportedPtx
from tests.cuda.ptx.floats import ROUNDINGS, bf16_to_f32
from tests.cuda.ptx.harness import compute, edge_floats, round_exactly, same
from tests.cuda.ptx.types import DTYPES, Array


def decode(bits: Array, kind: str) -> Array:
    return bf16_to_f32(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def on_and_beside_ties(kind: str) -> Array:
    """float32 half-way between two neighbours of a 16-bit format, and just beside."""
    bits = np.arange(0, 0x7C00 if kind == "f16" else 0x7F80, 37, dtype=np.uint16)
    values = decode(bits, kind).astype(np.float64)
    ties = np.array([(a + b) / 2 for a, b in pairwise(values)] + [65520.0 if kind == "f16" else 3.3961775e38]).astype(
        np.float32
    )
    neighbours = [np.nextafter(ties, np.float32(limit)) for limit in (0, np.inf)]
    found = np.concatenate([ties, *neighbours])
    return np.concatenate([found, -found])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_to_half_rounds_to_nearest_even(kind: str) -> None:
    a = np.concatenate([on_and_beside_ties(kind), edge_floats(1000)])
    result = decode(compute(f"cvt.rn.{kind}.f32 %out, %a;", np.uint16, a=a), kind)
    finite = np.isfinite(a)
    expected = np.array([round_exactly(Fraction(float(v)), kind) for v in a[finite]], np.float32)
    assert np.array_equal(result[finite], expected)
    assert same(result[~finite], a[~finite])
    assert np.array_equal(np.signbit(result[finite]), np.signbit(a[finite]))
    packed = compute(f"cvt.rn.{kind}x2.f32 %out, %a, %b;", np.uint32, a=a, b=a[::-1].copy())
    high, low = (packed >> np.uint32(16)).astype(np.uint16), packed.astype(np.uint16)
    assert same(decode(high, kind), result)
    assert same(decode(low, kind), result[::-1])


def test_nan_to_bf16_is_canonical() -> None:
    a = np.array([0xFFFFFFFF, 0x7F800001, 0x7FC00000], np.uint32).view(np.float32)
    assert compute("cvt.rn.bf16.f32 %out, %a;", np.uint16, a=a).tolist() == [0x7FFF] * 3


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_directed_rounding_to_half(rounding: str) -> None:
    a = np.concatenate([on_and_beside_ties("f16")[::7], np.array([1e9, -1e9, 1e-10, -1e-10, 65519], np.float32)])
    result = decode(compute(f"cvt.{rounding}.f16.f32 %out, %a;", np.uint16, a=a), "f16")
    assert np.array_equal(result, np.array([round_exactly(Fraction(float(v)), "f16", rounding) for v in a], np.float32))


def test_every_half_becomes_the_same_float() -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    with np.errstate(invalid="ignore"):
        assert same(compute("cvt.f32.f16 %out, %a;", np.float32, a=bits), bits.view(np.float16).astype(np.float32))
        assert same(compute("cvt.f64.f16 %out, %a;", np.float64, a=bits), bits.view(np.float16).astype(np.float64))
    assert same(compute("cvt.f32.bf16 %out, %a;", np.float32, a=bits), bf16_to_f32(bits))


def test_to_tf32_rounds_ties_away() -> None:
    a = np.array([1 + 2**-11, 1 + 2**-11 - 2**-23, -1 - 2**-11, 3.14159, np.inf], np.float32)
    result = compute("cvt.rna.tf32.f32 %out, %a;", np.uint32, a=a).view(np.float32)
    expected = [round_exactly(Fraction(float(v)), "tf32", "rna") for v in a[:4]]
    assert result.tolist() == [*expected, np.inf]


@pytest.mark.parametrize("rounding", ["rni", "rzi", "rmi", "rpi"])
@pytest.mark.parametrize("type_name", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_float_to_integer_clamps(type_name: str, rounding: str) -> None:
    limits = np.iinfo(DTYPES[type_name])
    near = [
        float(limits.min) - 1,
        float(limits.min),
        float(limits.max),
        float(limits.max) + 1,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
    ]
    a = np.concatenate([np.array([*near, np.inf, -np.inf, 1e30, -1e30], np.float32), edge_floats(200)])
    register = "s64" if type_name.endswith("64") else "s32"
    result = compute(f"cvt.{rounding}.{type_name}.f32 %out, %a;", DTYPES[register], a=a)
    function = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[rounding]
    for value, got in zip(a.tolist(), result.tolist(), strict=True):
        if np.isnan(value):
            wanted = 0
        elif np.isinf(value):
            wanted = limits.max if value > 0 else limits.min
        else:
            wanted = min(max(int(function(value)), limits.min), limits.max)
        mask = (1 << 8 * DTYPES[register].itemsize) - 1
        assert got & mask == int(wanted) & mask, value


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("type_name", ["s32", "u32", "s64", "u64", "s16"])
def test_integer_to_float(type_name: str, rounding: str) -> None:
    limits = np.iinfo(DTYPES[type_name])
    random = np.random.default_rng(3)
    values = [0, 1, limits.min, limits.max, limits.max - 1, limits.max // 3]
    if limits.bits > 24:
        values += [2**24 + 1, 2**24 + 3, 2**25 + 2, 2**25 + 6]
    if limits.bits == 64:
        values += [2**53 + 1, 2**54 + 2**29 + 1, 2**54 + 2**30 + 1, 2**62 + 1, 2**60 + 2**36 - 1]
    values += random.integers(limits.min, limits.max, 200, dtype=DTYPES[type_name]).tolist()
    a = np.array(values, DTYPES[type_name])
    result = compute(f"cvt.{rounding}.f32.{type_name} %out, %a;", np.float32, a=a)
    assert np.array_equal(result, np.array([round_exactly(Fraction(v), "f32", rounding) for v in values], np.float32))
    if limits.bits == 32:
        half = decode(compute(f"cvt.{rounding}.f16.{type_name} %out, %a;", np.uint16, a=a), "f16")
        assert np.array_equal(half, np.array([round_exactly(Fraction(v), "f16", rounding) for v in values], np.float32))


def test_integer_widths() -> None:
    a = np.array([0, 1, -1, 127, 128, 255, -128, 40000, -40000, 2**31 - 1, -(2**31)], np.int32)
    for type_name in ("s8", "u8", "s16", "u16"):
        narrow = a.astype(DTYPES[type_name])
        assert np.array_equal(compute(f"cvt.{type_name}.s32 %out, %a;", np.int32, a=a), narrow.astype(np.int32))
        assert np.array_equal(compute(f"cvt.s32.{type_name} %out, %a;", np.int32, a=a), narrow.astype(np.int32))
        limits = np.iinfo(DTYPES[type_name])
        saturated = compute(f"cvt.sat.{type_name}.s32 %out, %a;", np.int32, a=a)
        assert np.array_equal(saturated, np.clip(a, limits.min, limits.max))
    assert np.array_equal(compute("cvt.s64.s32 %out, %a;", np.int64, a=a), a)
    assert np.array_equal(compute("cvt.u64.u32 %out, %a;", np.uint64, a=a.view(np.uint32)), a.view(np.uint32))
    wide = a.astype(np.int64) * 5
    assert np.array_equal(compute("cvt.u32.u64 %out, %a;", np.uint32, a=wide), wide.astype(np.uint32))


def test_rounding_to_whole_floats() -> None:
    a = edge_floats(500)
    functions = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}
    for name, function in functions.items():
        with np.errstate(invalid="ignore"):
            whole = function(a)
        assert same(compute(f"cvt.{name}.f32.f32 %out, %a;", np.float32, a=a), whole), name
    with np.errstate(invalid="ignore"):
        saturated = np.where(np.isnan(a), 0, np.clip(a, 0, 1)) + np.float32(0)
    assert same(compute("cvt.sat.f32.f32 %out, %a;", np.float32, a=a), saturated)
    assert same(compute("cvt.ftz.f32.f32 %out, %a;", np.float32, a=np.array([1e-40], np.float32)), [0.0])


def test_between_single_and_double() -> None:
    a = np.concatenate([np.random.default_rng(1).standard_normal(50), [1 + 2**-24, 1 + 3 * 2**-24, 1e300, 1e-46]])
    for rounding in ROUNDINGS:
        result = compute(f"cvt.{rounding}.f32.f64 %out, %a;", np.float32, a=a)
        assert np.array_equal(result, np.array([round_exactly(Fraction(v), "f32", rounding) for v in a], np.float32))
    b = edge_floats(100)
    with np.errstate(invalid="ignore"):
        assert same(compute("cvt.f64.f32 %out, %a;", np.float64, a=b), b.astype(np.float64))


@pytest.mark.parametrize(
    "body",
    [
        "cvt.rs.f16x2.f32 %out, %a, %a, %a;",
        "cvt.rn.f32.s32.sat %out, %a;",
        "cvt.rn.e4m3x2.f32 %out, %a, %a;",
        "cvt.f32.s32 %out, %a;",
    ],
)
def test_unknown_conversions(body: str) -> None:
    with pytest.raises(UnsupportedPtx, match="PTX line"):
        compute(body, np.float32, a=np.zeros(1, np.float32))
