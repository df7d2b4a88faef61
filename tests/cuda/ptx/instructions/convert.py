"""cvt: conversions between integers, floating-point formats, and both."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx import floats
from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.types import DTYPES, INTEGER, SIGNED, Array, Mask

_FLOATING = frozenset({"f16", "bf16", "f32", "f64"})
_TO_INTEGER: dict[str, Callable[[Array], Array]] = {
    "rni": np.rint,
    "rzi": np.trunc,
    "rmi": np.floor,
    "rpi": np.ceil,
}


@instruction("cvt")
def _convert(context: Context) -> Step:
    source_type, result_type = context.take_type(), context.take_type()
    if result_type in ("bf16x2", "f16x2"):
        return _pack(context, result_type, source_type)
    if result_type == "tf32":
        return _to_tf32(context, source_type)
    destination, operand = context.operands(2)
    source = context.source(operand, source_type, wide=True)
    target = context.target(destination, result_type, wide=True)
    if source_type in INTEGER and result_type in INTEGER:
        convert = _integers(context, source_type, result_type)
    elif source_type in INTEGER and result_type in _FLOATING:
        convert = _integer_to_float(context, result_type)
    elif source_type in _FLOATING and result_type in INTEGER:
        convert = _float_to_integer(context, source_type, result_type)
    elif source_type in _FLOATING and result_type in _FLOATING:
        convert = _floats(context, source_type, result_type)
    else:
        context.refuse(f"conversion from .{source_type} to .{result_type}")
    narrow = DTYPES[result_type]

    def step(mask: Mask) -> None:
        # To the result's own width first: a wider register takes it extended.
        write(target, convert(source).astype(narrow, copy=False), mask)

    return step


def _integers(context: Context, source_type: str, result_type: str) -> Callable[[Array], Array]:
    if not context.flag("sat"):
        return lambda values: values
    limits = np.iinfo(DTYPES[result_type])
    own = np.iinfo(DTYPES[source_type])
    low, high = max(limits.min, own.min), min(limits.max, own.max)
    return lambda values: np.clip(values, low, high)


def _integer_to_float(context: Context, result_type: str) -> Callable[[Array], Array]:
    rounding = context.choose(*floats.ROUNDINGS)
    saturates = context.flag("sat")
    if result_type == "f64" and rounding != "rn":
        context.refuse("only .rn for .f64")

    def convert(values: Array) -> Array:
        if result_type in ("f32", "f64") and rounding == "rn":
            result = values.astype(DTYPES[result_type])
        else:
            # A 64-bit integer may need more bits than a float64 has: two halves, added as a pair.
            whole = values if values.dtype == np.uint64 else values.astype(np.int64)
            high, low = (whole >> 16).astype(np.float64) * 65536.0, (whole & 0xFFFF).astype(np.float64)
            total, lost = floats.exact_sum(high, low)
            result = floats.encode(total, result_type, rounding, lost)
        return floats.saturate(result) if saturates else result

    return convert


def _float_to_integer(context: Context, source_type: str, result_type: str) -> Callable[[Array], Array]:
    round_ = _TO_INTEGER[context.choose(*_TO_INTEGER)]
    flushes = context.flag("ftz")
    # The range is clamped with or without .sat.
    context.flag("sat")
    limits = np.iinfo(DTYPES[result_type])
    above = float(limits.max) + (1.0 if limits.max < 2**53 else 0.0)

    def convert(values: Array) -> Array:
        if flushes:
            values = floats.flush(values)
        rounded = round_(floats.decode(values, source_type))
        too_high, too_low = rounded >= above, rounded < limits.min
        inside = np.where(np.isnan(rounded) | too_high | too_low, 0.0, rounded)
        whole = inside.astype(np.int64 if result_type in SIGNED else np.uint64).astype(DTYPES[result_type])
        return np.where(too_high, limits.max, np.where(too_low, limits.min, whole)).astype(DTYPES[result_type])

    return convert


def _floats(context: Context, source_type: str, result_type: str) -> Callable[[Array], Array]:
    to_integer = context.choose(*_TO_INTEGER, default="none")
    rounding = context.choose(*floats.ROUNDINGS, default="rn")
    flushes, saturates, cuts = context.flag("ftz"), context.flag("sat"), context.flag("relu")
    if to_integer != "none" and source_type != result_type:
        context.refuse(f".{to_integer} between different types")
    if flushes and "f32" not in (source_type, result_type):
        context.refuse(".ftz is for .f32")
    same = source_type == result_type and to_integer == "none"

    def convert(values: Array) -> Array:
        if flushes and source_type == "f32":
            values = floats.flush(values)
        wide = floats.decode(values, source_type)
        if to_integer != "none":
            wide = np.copysign(_TO_INTEGER[to_integer](wide), wide)
        if saturates:
            wide = floats.saturate(wide)
        if cuts:
            wide = np.where(wide < 0, 0.0, wide)
        result = values if same and not saturates and not cuts else floats.encode(wide, result_type, rounding)
        return floats.flush(result) if flushes and result_type == "f32" else result

    return convert


def _pack(context: Context, result_type: str, source_type: str) -> Step:
    """cvt.rn.bf16x2.f32 d, a, b: a goes into the upper half, b into the lower."""
    rounding = context.choose("rn", "rz")
    cuts = context.flag("relu")
    if source_type != "f32":
        context.refuse(f"packs .f32, not .{source_type}")
    destination, upper, lower = context.operands(3)
    target = context.target(destination, result_type)
    kind = result_type.removesuffix("x2")
    high, low = context.source(upper, "f32"), context.source(lower, "f32")

    def half(values: Array) -> Array:
        if kind == "bf16" and rounding == "rn" and not cuts:
            return floats.round_bf16(values).astype(np.uint32)
        wide = values.astype(np.float64)
        if cuts:
            wide = np.where(wide < 0, 0.0, wide)
        return floats.encode(wide, kind, rounding).view(np.uint16).astype(np.uint32)

    return lambda mask: write(target, (half(high) << np.uint32(16)) | half(low), mask)


def _to_tf32(context: Context, source_type: str) -> Step:
    """cvt.rna.tf32.f32: to 10 bits of mantissa, ties away from zero."""
    context.choose("rna")
    if source_type != "f32":
        context.refuse(f"converts .f32, not .{source_type}")
    destination, operand = context.operands(2)
    source, target = context.source(operand, "f32"), context.target(destination, "tf32")
    half_way, kept = np.uint32(1 << 12), ~np.uint32((1 << 13) - 1)

    def step(mask: Mask) -> None:
        bits = np.ascontiguousarray(source).view(np.uint32)
        write(target, np.where(np.isfinite(source), (bits + half_way) & kept, bits), mask)

    return step
