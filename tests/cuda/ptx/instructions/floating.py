"""Arithmetic on float32 and float64. Approximate instructions are computed in float64 and rounded to nearest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx import floats
from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.types import FLOAT, Array, Mask

Compute = Callable[..., Array]
_NAN = np.uint32(0x7FFF_FFFF).view(np.float32)


def _finish(context: Context, type_name: str, compute: Compute, sources: list[Array], target: Array) -> Step:
    """A step that computes and writes, with .ftz and .sat as the instruction says."""
    flushes, saturates = context.flag("ftz"), context.flag("sat")
    if (flushes or saturates) and type_name != "f32":
        context.refuse(".ftz and .sat are for .f32")

    def plain(mask: Mask) -> None:
        write(target, compute(*sources), mask)

    def adjusted(mask: Mask) -> None:
        result = compute(*(floats.flush(source) for source in sources)) if flushes else compute(*sources)
        if saturates:
            result = floats.saturate(result)
        write(target, floats.flush(result) if flushes else result, mask)

    return adjusted if flushes or saturates else plain


def _has_ftz_or_sat(context: Context) -> bool:
    return "ftz" in context.modifiers or "sat" in context.modifiers


@instruction("add", "sub", "mul", types=FLOAT)
def _arithmetic(context: Context) -> Step:
    type_name = context.take_type()
    rounding = context.choose(*floats.ROUNDINGS, default="rn")
    destination, *operands = context.operands(3)
    sources = [context.source(operand, type_name) for operand in operands]
    target = context.target(destination, type_name)
    opcode = context.instruction.opcode
    if rounding != "rn":
        if type_name == "f64":
            context.refuse("only .rn for .f64")
        return _finish(context, type_name, _directed(opcode, rounding), sources, target)
    operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[opcode]
    if _has_ftz_or_sat(context):
        return _finish(context, type_name, operation, sources, target)
    a, b = sources

    def step(mask: Mask) -> None:
        operation(a, b, out=target, where=mask)

    return step


def _directed(opcode: str, rounding: str) -> Compute:
    if opcode == "mul":
        # The product of two float32 is exact in float64.
        return lambda a, b: floats.encode(a.astype(np.float64) * b, "f32", rounding)
    if opcode == "sub":
        return lambda a, b: floats.add(a, -b, rounding)
    return lambda a, b: floats.add(a, b, rounding)


@instruction("fma", "mad", types=FLOAT)
def _fused(context: Context) -> Step:
    type_name = context.take_type()
    rounding = context.choose(*floats.ROUNDINGS)
    destination, *operands = context.operands(4)
    sources = [context.source(operand, type_name) for operand in operands]
    target = context.target(destination, type_name)
    compute: Compute
    if type_name == "f64":
        if rounding != "rn":
            context.refuse("only .rn for .f64")
        compute = floats.fma_f64
    elif rounding == "rn":
        compute = floats.fma_f32
    else:

        def compute(a: Array, b: Array, c: Array) -> Array:
            return floats.fma(a, b, c, "f32", rounding)

    return _finish(context, type_name, compute, sources, target)


@instruction("div", types=FLOAT)
def _divide(context: Context) -> Step:
    type_name = context.take_type()
    mode = context.choose("rn", "approx", "full")
    if mode != "rn" and type_name == "f64":
        context.refuse("only .rn for .f64")
    destination, *operands = context.operands(3)
    sources = [context.source(operand, type_name) for operand in operands]
    target = context.target(destination, type_name)

    def approximate(a: Array, b: Array) -> Array:
        # The hardware's reciprocal of a divisor above 2^126 is zero.
        large = (np.abs(b) > np.float32(2.0**126)) & np.isfinite(b)
        return np.where(large, np.where(np.isinf(a), _NAN, np.float32(0)), a / b)

    return _finish(context, type_name, approximate if mode == "approx" else np.divide, sources, target)


def _float64(function: Callable[[Array], Array]) -> Compute:
    return lambda a: function(a.astype(np.float64)).astype(np.float32)


# (opcode, mode, type) -> function of the operand
_UNARY: dict[tuple[str, str, str], Compute] = {
    ("rcp", "rn", "f32"): lambda a: np.float32(1) / a,
    ("rcp", "rn", "f64"): lambda a: 1 / a,
    ("rcp", "approx", "f32"): lambda a: np.float32(1) / a,
    ("sqrt", "rn", "f32"): np.sqrt,
    ("sqrt", "rn", "f64"): np.sqrt,
    ("sqrt", "approx", "f32"): np.sqrt,
    ("rsqrt", "approx", "f32"): _float64(lambda a: 1 / np.sqrt(a)),
    ("ex2", "approx", "f32"): _float64(np.exp2),
    ("lg2", "approx", "f32"): _float64(np.log2),
    ("sin", "approx", "f32"): _float64(np.sin),
    ("cos", "approx", "f32"): _float64(np.cos),
    ("tanh", "approx", "f32"): _float64(np.tanh),
}


@instruction("rcp", "sqrt", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh", types=FLOAT)
def _function(context: Context) -> Step:
    type_name = context.take_type()
    mode = context.choose("rn", "approx")
    compute = _UNARY.get((context.instruction.opcode, mode, type_name))
    if compute is None:
        context.refuse("unknown form")
    destination, operand = context.operands(2)
    sources, target = [context.source(operand, type_name)], context.target(destination, type_name)
    return _finish(context, type_name, compute, sources, target)


@instruction("neg", "abs", types=FLOAT)
def _sign(context: Context) -> Step:
    type_name = context.take_type()
    destination, operand = context.operands(2)
    sources, target = [context.source(operand, type_name)], context.target(destination, type_name)
    compute = np.negative if context.instruction.opcode == "neg" else np.abs
    return _finish(context, type_name, compute, sources, target)


@instruction("copysign", types=FLOAT)
def _copy_sign(context: Context) -> Step:
    type_name = context.take_type()
    destination, sign, magnitude = context.operands(3)
    a, b = context.source(sign, type_name), context.source(magnitude, type_name)
    target = context.target(destination, type_name)
    return lambda mask: write(target, np.copysign(b, a), mask)


def minimum(a: Array, b: Array, wants_minimum: bool, passes_nan: bool) -> Array:
    """The smaller or larger of two floats; -0 is below +0; NaN is ignored unless `passes_nan`."""
    if passes_nan:
        result = (np.minimum if wants_minimum else np.maximum)(a, b)
    else:
        result = (np.fmin if wants_minimum else np.fmax)(a, b)
    zero = result == 0
    if np.count_nonzero(zero):
        # Of two zeros the sign decides, which a comparison does not see.
        tie = zero & (a == b)
        negative = np.signbit(a) | np.signbit(b) if wants_minimum else np.signbit(a) & np.signbit(b)
        result = np.where(tie, np.where(negative, -result.dtype.type(0), result.dtype.type(0)), result)
    return result


@instruction("min", "max", types=FLOAT)
def _minimum(context: Context) -> Step:
    type_name = context.take_type()
    passes_nan = context.flag("NaN")
    destination, *operands = context.operands(3)
    sources, target = [context.source(o, type_name) for o in operands], context.target(destination, type_name)
    wants_minimum = context.instruction.opcode == "min"
    return _finish(context, type_name, lambda a, b: minimum(a, b, wants_minimum, passes_nan), sources, target)


@instruction("testp", types=FLOAT)
def _test(context: Context) -> Step:
    type_name = context.take_type()
    kind = context.choose("finite", "infinite", "number", "notanumber", "normal", "subnormal")
    destination, operand = context.operands(2)
    source, target = context.source(operand, type_name), context.target(destination, "pred")
    smallest = np.finfo(source.dtype).smallest_normal

    tests: dict[str, Callable[[], Array]] = {
        "finite": lambda: np.isfinite(source),
        "infinite": lambda: np.isinf(source),
        "number": lambda: ~np.isnan(source),
        "notanumber": lambda: np.isnan(source),
        "normal": lambda: np.isfinite(source) & (np.abs(source) >= smallest),
        "subnormal": lambda: (source != 0) & (np.abs(source) < smallest),
    }
    test = tests[kind]
    return lambda mask: write(target, test(), mask)
