"""Floating-point formats and correct rounding in every mode, with float64 as the carrier.

A result is computed as a pair (high, low) of float64 whose sum is the exact value. Rounding that pair to odd keeps all
that a narrower format needs to know, so one more rounding, to nearest even or in a direction, is exact.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

from tests.cuda.ptx.types import Array

ROUNDINGS = ("rn", "rz", "rm", "rp")
_F32_MIN_NORMAL = float(np.finfo(np.float32).smallest_normal)
# Bits of a float64 below those that a float32 keeps, and the pattern of a value half-way between two float32.
_F32_DROPPED = np.int64((1 << 29) - 1)
_F32_HALF_WAY = np.int64(1 << 28)


def bf16_to_f32(bits: Array) -> Array:
    """The values of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def decode(values: Array, kind: str) -> Array:
    """float64 values of an array of `kind`: "f16", "bf16" (as uint16), "f32" or "f64"."""
    if kind == "bf16":
        return bf16_to_f32(values).astype(np.float64)
    return values.astype(np.float64)


def round_bf16(values: Array) -> Array:
    """bfloat16 bits nearest to the float64 or float32 values, ties to even; NaN is 0x7fff."""
    narrow = values.astype(np.float32)
    bits = narrow.view(np.uint32)
    if values.dtype != np.float32:
        bits = _off_false_ties(values, narrow, bits)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(narrow), np.uint16(0x7FFF), rounded.astype(np.uint16))


def _off_false_ties(values: Array, narrow: Array, bits: Array) -> Array:
    """Where the float32 fell on a tie of bfloat16 that the value is not on: the float32 on the value's side."""
    error = values - narrow
    tie = ((bits & 0xFFFF) == 0x8000) & (error != 0) & np.isfinite(narrow)
    if not np.count_nonzero(tie):
        return bits
    away = (error > 0) == (narrow > 0)
    return np.where(tie, np.where(away, bits + np.uint32(1), bits - np.uint32(1)), bits)


def nearest(values: Array, kind: str) -> Array:
    """Rounds float64 to the nearest value of the format, ties to even."""
    if kind == "bf16":
        return round_bf16(values)
    return values.astype({"f16": np.float16, "f32": np.float32, "f64": np.float64}[kind])


def encode(high: Array, kind: str, rounding: str = "rn", low: Array | None = None) -> Array:
    """Rounds the exact value high + low to the format."""
    if low is not None:
        high = round_to_odd(high, low)
    result = nearest(high, kind)
    if rounding == "rn" or kind == "f64":
        return result
    value = decode(result, kind)
    too_high = value > high
    too_low = value < high
    negative = np.signbit(high)
    if rounding == "rz":
        too_high, too_low = too_high & ~negative, too_low & negative
    elif rounding == "rm":
        too_low = np.zeros_like(too_low)
    elif rounding == "rp":
        too_high = np.zeros_like(too_high)
    return _step(result, kind, too_high, too_low)


def _step(result: Array, kind: str, down: Array, up: Array) -> Array:
    """One value further down or up, where asked for. Infinity steps to the largest finite value."""
    size: Any = {"f16": np.uint16, "bf16": np.uint16, "f32": np.uint32}[kind]
    bits = np.ascontiguousarray(result).view(size)
    top: Any = size(1 << (8 * np.dtype(size).itemsize - 1))
    negative = (bits & top) != 0
    zero = (bits & ~top) == 0
    # Down from zero is the smallest negative number, up from zero the smallest positive one.
    lower = np.where(zero, top | size(1), np.where(negative, bits + size(1), bits - size(1)))
    upper = np.where(zero, size(1), np.where(negative, bits - size(1), bits + size(1)))
    stepped: Array = np.where(down, lower, np.where(up, upper, bits)).astype(size)
    return stepped.view(result.dtype)


def round_to_odd(high: Array, low: Array) -> Array:
    """high + low, rounded to a neighbour with an odd last bit unless it is exact."""
    bits = np.ascontiguousarray(high, np.float64).view(np.int64)
    # At an infinity the low part is no number: then nothing moves.
    inexact = np.isfinite(high) & np.isfinite(low) & (low != 0) & ((bits & 1) == 0)
    return np.where(inexact, np.nextafter(high, np.where(low > 0, np.inf, -np.inf)), high)


def exact_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b as a float64 and what rounding lost."""
    high = a + b
    shadow = high - a
    low = (a - (high - shadow)) + (b - shadow)
    return high, np.where(np.isfinite(low), low, 0.0)


def fma_f32(a: Array, b: Array, c: Array) -> Array:
    """a b + c of float32, rounded once to nearest even."""
    product = a.astype(np.float64) * b
    total = product + c
    # Rounding twice is wrong only where the float64 is half-way between two float32, or the float32 is subnormal.
    risky = (total.view(np.int64) & _F32_DROPPED) == _F32_HALF_WAY
    risky |= (np.abs(total) < _F32_MIN_NORMAL) & (total != 0)
    if np.count_nonzero(risky):
        return encode(*_fma_parts(product, c))
    return total.astype(np.float32)


def add(a: Array, b: Array, rounding: str) -> Array:
    """a + b of float32, rounded once."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    high, low = exact_sum(x, y)
    return encode(_signed_zero(high, x, y, rounding), "f32", rounding, low)


def _signed_zero(total: Array, a: Array, b: Array, rounding: str) -> Array:
    """Rounding down gives a sum of zero the sign minus, but for +0 + +0."""
    if rounding != "rm":
        return total
    return np.where((total == 0) & (np.signbit(a) | np.signbit(b)), -0.0, total)


def _fma_parts(product: Array, c: Array) -> tuple[Array, str, str, Array]:
    high, low = exact_sum(product, c.astype(np.float64))
    return high, "f32", "rn", low


def fma(a: Array, b: Array, c: Array, kind: str, rounding: str) -> Array:
    """a b + c of any format but float64, rounded once."""
    product, addend = decode(a, kind) * decode(b, kind), decode(c, kind)
    high, low = exact_sum(product, addend)
    return encode(_signed_zero(high, product, addend, rounding), kind, rounding, low)


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """a b + c of float64, rounded once, one element at a time."""
    result = a * b + c
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    for i in np.flatnonzero(finite):
        exact = Fraction(float(a[i])) * Fraction(float(b[i])) + Fraction(float(c[i]))
        if exact:
            try:
                result[i] = float(exact)
            except OverflowError:
                result[i] = np.inf if exact > 0 else -np.inf
    return result


def flush(values: Array) -> Array:
    """Subnormal float32 to zero of the same sign."""
    return np.where(np.abs(values) < np.float32(_F32_MIN_NORMAL), np.copysign(np.float32(0), values), values)


def saturate(values: Array) -> Array:
    """Clamps to [0, 1]; NaN becomes zero."""
    clamped = np.clip(values, 0, 1)
    return np.where(np.isnan(values), 0, np.where(clamped == 0, 0, clamped)).astype(values.dtype)
