"""Arithmetic on float16 and bfloat16, alone and in packed pairs, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx import floats
from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.instructions.floating import minimum
from tests.cuda.ptx.syntax import Operand
from tests.cuda.ptx.types import HALF, Array, Mask

# float64 values of the operands -> the exact result as a float64 and what it lacks
Compute = Callable[..., tuple[Array, Array]]


class Halves:
    """The operands of one instruction as arrays of 16-bit elements, two for each lane where they are packed."""

    def __init__(self, context: Context, type_name: str) -> None:
        self._context = context
        self._type = type_name
        self.packed = type_name.endswith("x2")
        self.kind = type_name.removesuffix("x2")
        self._dtype = np.dtype(np.float16 if self.kind == "f16" else np.uint16)

    def source(self, operand: Operand) -> Array:
        """The elements of a source operand."""
        return self._context.source(operand, self._type).view(self._dtype)

    def target(self, operand: Operand) -> Array:
        """The elements of the destination."""
        return self._context.target(operand, self._type).view(self._dtype)

    def mask(self, mask: Mask) -> Mask:
        """The elements that act."""
        return np.repeat(mask, 2) if self.packed and not isinstance(mask, bool) else mask


def _finish(context: Context, halves: Halves, compute: Compute) -> Step:
    """A step on float64 values of the operands, with .sat and .relu as the instruction says."""
    saturates, cuts = context.flag("sat"), context.flag("relu")
    destination, *operands = context.instruction.operands
    sources, target = [halves.source(operand) for operand in operands], halves.target(destination)
    kind = halves.kind

    def step(mask: Mask) -> None:
        high, low = compute(*(floats.decode(source, kind) for source in sources))
        if saturates:
            outside = (high < 0) | (high > 1) | np.isnan(high)
            high, low = floats.saturate(high), np.where(outside, 0.0, low)
        result = floats.encode(high, kind, "rn", low)
        if cuts:
            below = floats.decode(result, kind) < 0
            result = np.where(below, result.dtype.type(0), result)
        write(target, result, halves.mask(mask))

    return step


def _exact(compute: Callable[..., Array]) -> Compute:
    return lambda *values: (compute(*values), np.zeros_like(values[0]))


@instruction("add", "sub", "mul", types=HALF)
def _arithmetic(context: Context) -> Step:
    halves = Halves(context, context.take_type())
    context.choose("rn", default="rn")
    context.operands(3)
    compute: dict[str, Compute] = {
        "add": floats.exact_sum,
        "sub": lambda a, b: floats.exact_sum(a, -b),
        "mul": _exact(np.multiply),
    }
    return _finish(context, halves, compute[context.instruction.opcode])


@instruction("fma", types=HALF)
def _fused(context: Context) -> Step:
    halves = Halves(context, context.take_type())
    context.choose("rn")
    context.operands(4)
    return _finish(context, halves, lambda a, b, c: floats.exact_sum(a * b, c))


@instruction("ex2", "tanh", types=HALF)
def _function(context: Context) -> Step:
    halves = Halves(context, context.take_type())
    context.choose("approx")
    context.operands(2)
    if halves.kind == "bf16" and context.instruction.opcode == "ex2":
        # ex2 of bfloat16 exists only with .ftz, and no result that matters is subnormal.
        context.choose("ftz")
        return _finish(context, halves, _exact(lambda a: _flush_bf16(np.exp2(_flush_bf16(a)))))
    return _finish(context, halves, _exact(np.exp2 if context.instruction.opcode == "ex2" else np.tanh))


def _flush_bf16(values: Array) -> Array:
    return np.where(np.abs(values) < 2.0**-126, np.copysign(0.0, values), values)


@instruction("neg", "abs", types=HALF)
def _sign(context: Context) -> Step:
    halves = Halves(context, context.take_type())
    destination, operand = context.operands(2)
    source, target = halves.source(operand).view(np.uint16), halves.target(destination).view(np.uint16)
    negates = context.instruction.opcode == "neg"
    sign, rest = np.uint16(0x8000), np.uint16(0x7FFF)

    def step(mask: Mask) -> None:
        write(target, source ^ sign if negates else source & rest, halves.mask(mask))

    return step


@instruction("min", "max", types=HALF)
def _minimum(context: Context) -> Step:
    halves = Halves(context, context.take_type())
    passes_nan = context.flag("NaN")
    destination, *operands = context.operands(3)
    a, b = (halves.source(operand) for operand in operands)
    target, kind = halves.target(destination), halves.kind
    wants_minimum = context.instruction.opcode == "min"

    def step(mask: Mask) -> None:
        result = minimum(floats.decode(a, kind), floats.decode(b, kind), wants_minimum, passes_nan)
        write(target, floats.encode(result, kind), halves.mask(mask))

    return step
