"""Floating-point arithmetic of the PTX engine: roundings against rational numbers, functions against float64."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tests.cuda.ptx import UnsupportedPtx
from tests.cuda.ptx.floats import ROUNDINGS, bf16_to_f32, round_bf16
from tests.cuda.ptx.harness import FORMATS, compute, edge_floats, round_exactly, same
from tests.cuda.ptx.types import Array

RNG = np.random.default_rng(11)


def finite(count: int, seed: int) -> Array:
    """Finite float32 whose sums and products fall on ties and into the subnormals more often than random ones would."""
    random = np.random.default_rng(seed)
    exponents = random.integers(-12, 13, count)
    short = np.ldexp(random.integers(-(2**12), 2**12, count).astype(np.float32), exponents)
    tiny = np.ldexp(random.integers(-(2**24), 2**24, count).astype(np.float32), random.integers(-100, -60, count))
    values = np.concatenate([short, tiny, random.standard_normal(count)]).astype(np.float32)
    return values[random.permutation(len(values))]


def exact(values: list[Fraction], kind: str, rounding: str) -> Array:
    return np.array([round_exactly(value, kind, rounding) for value in values], np.float32)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_rounding_is_exact(name: str, rounding: str) -> None:
    a, b, c = (finite(300, seed) for seed in (1, 2, 3))
    if name == "fma":
        # Let some products nearly cancel against the addend.
        c[::3] = -(a[::3] * b[::3]) * (1 + RNG.integers(-1, 2, len(c[::3])) * np.float32(2**-23))
    x, y, z = ([Fraction(float(v)) for v in array] for array in (a, b, c))
    wanted = {
        "add": [p + q for p, q in zip(x, y, strict=True)],
        "sub": [p - q for p, q in zip(x, y, strict=True)],
        "mul": [p * q for p, q in zip(x, y, strict=True)],
        "fma": [p * q + r for p, q, r in zip(x, y, z, strict=True)],
    }[name]
    operands = "%a, %b, %c" if name == "fma" else "%a, %b"
    result = compute(f"{name}.{rounding}.f32 %out, {operands};", np.float32, a=a, b=b, c=c)
    assert np.array_equal(result, exact(wanted, "f32", rounding))


def test_fma_on_ties() -> None:
    # (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24 lies half-way; only what is added decides, far below a float64's last bit.
    a = np.full(3, 1 + 2**-12, np.float32)
    c = np.array([2.0**-120, -(2.0**-120), 0], np.float32)
    result = compute("fma.rn.f32 %out, %a, %a, %c;", np.float32, a=a, c=c)
    down = np.float32(1 + 2**-11)
    assert result.tolist() == [np.nextafter(down, np.float32(2)), down, down]


def test_special_values() -> None:
    a = edge_floats(200)
    b = a[RNG.permutation(len(a))]
    with np.errstate(all="ignore"):
        expected = {"add": a + b, "sub": a - b, "mul": a * b, "div.rn": a / b}
    for name, value in expected.items():
        assert same(compute(f"{name}.f32 %out, %a, %b;", np.float32, a=a, b=b), value), name
    with np.errstate(all="ignore"):
        assert same(compute("rcp.rn.f32 %out, %a;", np.float32, a=a), np.float32(1) / a)
        assert same(compute("sqrt.rn.f32 %out, %a;", np.float32, a=a), np.sqrt(a))
    assert same(compute("neg.f32 %out, %a;", np.float32, a=a), -a)
    assert same(compute("abs.f32 %out, %a;", np.float32, a=a), np.abs(a))
    assert same(compute("copysign.f32 %out, %a, %b;", np.float32, a=a, b=b), np.copysign(b, a))


def test_infinities_and_nan_through_fma() -> None:
    inf, nan = np.inf, np.nan
    a = np.array([inf, inf, 0, nan, 3e38, -3e38, 1, 0], np.float32)
    b = np.array([1, 1, inf, 1, 3e38, 3e38, 1, -1], np.float32)
    c = np.array([1, -inf, 1, 1, -inf, 0, nan, 0], np.float32)
    result = compute("fma.rn.f32 %out, %a, %b, %c;", np.float32, a=a, b=b, c=c)
    assert same(result, np.array([inf, nan, nan, nan, -inf, -inf, nan, 0], np.float32))
    down = compute("fma.rm.f32 %out, %a, %b, %c;", np.float32, a=a, b=b, c=c)
    assert same(down, np.array([inf, nan, nan, nan, -inf, -inf, nan, -0.0], np.float32))
    toward_zero = compute("mul.rz.f32 %out, %a, %b;", np.float32, a=a[4:6], b=b[4:6])
    assert toward_zero.tolist() == [np.finfo(np.float32).max, -np.finfo(np.float32).max]


def test_minimum_and_maximum_of_zeros_and_nan() -> None:
    a = np.array([0.0, -0.0, np.nan, 1, np.nan, -1, -np.inf], np.float32)
    b = np.array([-0.0, 0.0, 1, np.nan, np.nan, -2, np.inf], np.float32)
    assert same(compute("max.f32 %out, %a, %b;", np.float32, a=a, b=b), [0.0, 0.0, 1, 1, np.nan, -1, np.inf])
    assert same(compute("min.f32 %out, %a, %b;", np.float32, a=a, b=b), [-0.0, -0.0, 1, 1, np.nan, -2, -np.inf])
    nan = np.nan
    assert same(compute("max.NaN.f32 %out, %a, %b;", np.float32, a=a, b=b), [0.0, 0.0, nan, nan, nan, -1, np.inf])


def test_flush_and_saturate() -> None:
    tiny = np.float32(1e-40)
    a = np.array([tiny, -tiny, 2e-38, 1, 2, -1, np.nan], np.float32)
    assert same(compute("add.ftz.f32 %out, %a, 0f00000000;", np.float32, a=a), [0, 0, a[2], 1, 2, -1, np.nan])
    assert same(compute("mul.ftz.f32 %out, %a, 0f3E800000;", np.float32, a=a)[:3], [0.0, -0.0, 0])
    assert same(compute("mul.f32 %out, %a, 0f3E800000;", np.float32, a=a)[2:3], a[2:3] / 4)
    assert same(compute("add.sat.f32 %out, %a, 0f00000000;", np.float32, a=a), [tiny, 0, a[2], 1, 1, 0, 0])
    assert same(compute("fma.rn.ftz.sat.f32 %out, %a, %a, %a;", np.float32, a=a), [0, 0, a[2], 1, 1, 0, 0])
    assert same(compute("ex2.approx.ftz.f32 %out, %a;", np.float32, a=a - 127)[:1], [0])


@pytest.mark.parametrize("name", ["ex2", "lg2", "rcp", "sqrt", "rsqrt", "sin", "cos", "tanh"])
def test_functions(name: str) -> None:
    a = np.concatenate([edge_floats(500), RNG.uniform(-20, 20, 500).astype(np.float32)])
    a = a[(np.abs(a) < 1e5) | ~np.isfinite(a)] if name in ("sin", "cos") else a
    with np.errstate(all="ignore"):
        wide = a.astype(np.float64)
        functions: dict[str, Callable[[Array], Array]] = {
            "ex2": np.exp2,
            "lg2": np.log2,
            "rcp": lambda v: 1 / v,
            "sqrt": np.sqrt,
            "rsqrt": lambda v: 1 / np.sqrt(v),
            "sin": np.sin,
            "cos": np.cos,
            "tanh": np.tanh,
        }
        expected = functions[name](wide).astype(np.float32)
    assert same(compute(f"{name}.approx.f32 %out, %a;", np.float32, a=a), expected)


def test_approximate_division() -> None:
    a = np.array([1, 6, np.inf, 1], np.float32)
    b = np.array([3, 2, 3e38, 3e38], np.float32)
    third = float(np.float32(1 / 3))
    assert same(compute("div.approx.f32 %out, %a, %b;", np.float32, a=a, b=b), [third, 3, np.nan, 0])
    assert same(compute("div.full.f32 %out, %a, %b;", np.float32, a=a, b=b)[:2], [third, 3])


def test_comparisons_with_nan() -> None:
    a = np.array([1, 2, 1, np.nan, np.nan, 0.0, np.inf], np.float32)
    b = np.array([1, 1, 2, 1, np.nan, -0.0, np.inf], np.float32)
    nan = np.isnan(a) | np.isnan(b)
    ordered: dict[str, Array] = {
        "eq": a == b,
        "lt": a < b,
        "le": a <= b,
        "gt": a > b,
        "ge": a >= b,
        "ne": (a != b) & ~nan,
    }
    expected = ordered | {f"{name}u": value | nan for name, value in ordered.items()} | {"num": ~nan, "nan": nan}
    for name, value in expected.items():
        body = f"setp.{name}.f32 %p, %a, %b;\nselp.u32 %out, 1, 0, %p;"
        assert np.array_equal(compute(body, np.uint32, a=a, b=b), value), name
    assert compute(
        "slct.f32.f32 %out, %a, %b, %c;", np.float32, a=a[:3], b=-b[:3], c=np.array([-0.0, -1, 1], np.float32)
    ).tolist() == [1, -1, 1]


def test_kinds_of_numbers() -> None:
    a = np.array([0, 1, 1e-40, np.inf, np.nan], np.float32)
    expected = {
        "finite": [1, 1, 1, 0, 0],
        "infinite": [0, 0, 0, 1, 0],
        "number": [1, 1, 1, 1, 0],
        "notanumber": [0, 0, 0, 0, 1],
        "normal": [0, 1, 0, 0, 0],
        "subnormal": [0, 0, 1, 0, 0],
    }
    for name, value in expected.items():
        assert compute(f"testp.{name}.f32 %p, %a;\nselp.u32 %out, 1, 0, %p;", np.uint32, a=a).tolist() == value


def test_double_precision() -> None:
    a, b = RNG.standard_normal((2, 100))
    c = -(a * b)
    assert np.array_equal(compute("add.f64 %out, %a, %b;", np.float64, a=a, b=b), a + b)
    assert np.array_equal(compute("div.rn.f64 %out, %a, %b;", np.float64, a=a, b=b), a / b)
    fused = [float(Fraction(x) * Fraction(y) + Fraction(z)) for x, y, z in zip(a, b, c, strict=True)]
    assert np.array_equal(compute("fma.rn.f64 %out, %a, %b, %c;", np.float64, a=a, b=b, c=c), fused)
    with pytest.raises(UnsupportedPtx, match=r"only \.rn"):
        compute("add.rz.f64 %out, %a, %b;", np.float64, a=a, b=b)


def halves(kind: str, count: int, seed: int) -> tuple[Array, Array]:
    """(bits, values) of finite numbers of a 16-bit format, many of them subnormal or short."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**16, count).astype(np.uint16)
    values = bf16_to_f32(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)
    moderate = random.standard_normal(count).astype(np.float32)
    values = np.where(np.isfinite(values) & (np.abs(values) < 2.0**100), values, moderate)
    values = np.where(random.random(count) < 0.5, values, moderate)
    bits = round_bf16(values) if kind == "bf16" else values.astype(np.float16).view(np.uint16)
    return bits, bf16_to_f32(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


def from_bits(bits: Array, kind: str) -> Array:
    return bf16_to_f32(bits) if kind == "bf16" else bits.view(np.float16).astype(np.float32)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma.rn"])
def test_half_arithmetic_is_rounded_once(name: str, kind: str) -> None:
    (a_bits, a), (b_bits, b), (c_bits, c) = (halves(kind, 600, seed) for seed in (1, 2, 3))
    x, y, z = ([Fraction(float(v)) for v in array] for array in (a, b, c))
    wanted = {
        "add": [p + q for p, q in zip(x, y, strict=True)],
        "sub": [p - q for p, q in zip(x, y, strict=True)],
        "mul": [p * q for p, q in zip(x, y, strict=True)],
        "fma.rn": [p * q + r for p, q, r in zip(x, y, z, strict=True)],
    }[name]
    operands = "%a, %b, %c" if name == "fma.rn" else "%a, %b"
    result = compute(f"{name}.{kind} %out, {operands};", np.uint16, a=a_bits, b=b_bits, c=c_bits)
    assert np.array_equal(from_bits(result, kind), exact(wanted, kind, "rn"))
    pairs = {key: bits.view(np.uint32) for key, bits in (("a", a_bits), ("b", b_bits), ("c", c_bits))}
    packed = compute(f"{name}.{kind}x2 %out, {operands};", np.uint32, **pairs)
    assert np.array_equal(packed.view(np.uint16), result)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_half_functions(kind: str) -> None:
    one, minus, nan, zero = (0x3C00, 0xBC00, 0x7E00, 0x8000) if kind == "f16" else (0x3F80, 0xBF80, 0x7FC0, 0x8000)
    a = np.array([one, minus, nan, zero, nan], np.uint16)
    b = np.array([minus, one, one, 0, nan], np.uint16)
    greatest = from_bits(compute(f"max.{kind} %out, %a, %b;", np.uint16, a=a, b=b), kind)
    assert same(greatest, [1, 1, 1, 0.0, np.nan])
    least = from_bits(compute(f"min.NaN.{kind} %out, %a, %b;", np.uint16, a=a, b=b), kind)
    assert same(least, [-1, -1, np.nan, -0.0, np.nan])
    assert compute(f"neg.{kind} %out, %a;", np.uint16, a=a)[:2].tolist() == [minus, one]
    assert compute(f"abs.{kind} %out, %a;", np.uint16, a=a)[:2].tolist() == [one, one]
    body = f"setp.lt.{kind} %p, %a, %b;\nselp.u32 %out, 1, 0, %p;"
    assert compute(body, np.uint32, a=a, b=b).tolist() == [0, 1, 0, 0, 0]
    assert compute(f"set.gtu.{kind}.{kind} %out, %a, %b;", np.uint16, a=a, b=b).tolist() == [one, 0, one, 0, one]
    assert same(from_bits(compute(f"tanh.approx.{kind} %out, %a;", np.uint16, a=a), kind)[2:4], [np.nan, -0.0])
    name = "ex2.approx.f16" if kind == "f16" else "ex2.approx.ftz.bf16"
    assert from_bits(compute(f"{name} %out, %a;", np.uint16, a=a), kind)[:2].tolist() == [2, 0.5]
    assert FORMATS[kind].precision in (8, 11)


def test_relu_of_packed_halves() -> None:
    a = np.array([0xBC003C00], np.uint32)
    one = np.array([0x3C003C00], np.uint32)
    assert compute("fma.rn.relu.f16x2 %out, %a, %b, %c;", np.uint32, a=a, b=one, c=a)[0] == 0x00004000
    assert compute("fma.rn.sat.f16x2 %out, %a, %b, %c;", np.uint32, a=a, b=one, c=a)[0] == 0x00003C00
    body = "setp.lt.f16x2 %p|%q, %a, %b;\nselp.u32 %t0, 1, 0, %p;\nselp.u32 %t1, 2, 0, %q;\nor.b32 %out, %t0, %t1;"
    assert compute(body, np.uint32, a=a, b=one)[0] == 2
