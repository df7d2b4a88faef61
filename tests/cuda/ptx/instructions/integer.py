"""Integer arithmetic."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.errors import Fault
from tests.cuda.ptx.types import DTYPES, INTEGER, SIGNED, Array, Mask, wider

_LOW = np.uint64(0xFFFF_FFFF)
_HALF = np.uint64(32)


def multiply_high(a: Array, b: Array) -> Array:
    """The upper half of the product of two arrays of one integer type."""
    if a.itemsize < 8:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        product: Array = (a.astype(wide) * b.astype(wide)) >> wide(8 * a.itemsize)
        return product.astype(a.dtype)
    x, y = a.view(np.uint64), b.view(np.uint64)
    x_low, x_high, y_low, y_high = x & _LOW, x >> _HALF, y & _LOW, y >> _HALF
    low_high, high_low = x_low * y_high, x_high * y_low
    carry: Array = ((x_low * y_low) >> _HALF) + (low_high & _LOW) + (high_low & _LOW)
    high: Array = x_high * y_high + (low_high >> _HALF) + (high_low >> _HALF) + (carry >> _HALF)
    if a.dtype.kind == "i":
        # A negative factor stands 2^64 too high as an unsigned one.
        zero = np.uint64(0)
        high = high - np.where(a < 0, y, zero) - np.where(b < 0, x, zero)
    return high.view(a.dtype)


def divide(a: Array, b: Array) -> Array:
    """Quotient rounded towards zero; no divisor may be zero."""
    quotient = a // b
    if a.dtype.kind == "i":
        quotient = quotient + ((quotient * b != a) & ((a < 0) != (b < 0)))
    return quotient.astype(a.dtype)


@instruction("add", "sub", types=INTEGER)
def _add(context: Context) -> Step:
    type_name = context.take_type()
    saturates, sets_carry = context.flag("sat"), context.flag("cc")
    destination, *sources = context.operands(3)
    a, b = (context.source(operand, type_name) for operand in sources)
    target = context.target(destination, type_name)
    operation = np.add if context.instruction.opcode == "add" else np.subtract
    if saturates:
        if type_name != "s32":
            context.refuse(".sat is for .s32")

        def saturate(mask: Mask) -> None:
            exact = operation(a.astype(np.int64), b.astype(np.int64))
            write(target, np.clip(exact, -(2**31), 2**31 - 1), mask)

        return saturate
    if sets_carry:
        return _carry(context, a, b, target, uses=False, sets=True)

    def step(mask: Mask) -> None:
        operation(a, b, out=target, where=mask)

    return step


@instruction("addc", "subc", types=INTEGER)
def _add_with_carry(context: Context) -> Step:
    type_name = context.take_type()
    sets_carry = context.flag("cc")
    destination, *sources = context.operands(3)
    a, b = (context.source(operand, type_name) for operand in sources)
    return _carry(context, a, b, context.target(destination, type_name), uses=True, sets=sets_carry)


def _carry(context: Context, a: Array, b: Array, target: Array, uses: bool, sets: bool) -> Step:
    """Addition or subtraction with the carry flag; for a subtraction the flag is the borrow."""
    unsigned = np.dtype(f"u{target.itemsize}")
    a, b, target = a.view(unsigned), b.view(unsigned), target.view(unsigned)
    flag, adds = context.core.carry, context.instruction.opcode.startswith("add")

    def step(mask: Mask) -> None:
        extra = flag.astype(unsigned) if uses else unsigned.type(0)
        if adds:
            partial = a + b
            result = partial + extra
            out = (partial < a) | (result < partial)
        else:
            result = a - b - extra
            out = (a < b) | ((a == b) & (extra != 0))
        write(target, result, mask)
        if sets:
            write(flag, out, mask)

    return step


@instruction("mul", "mad", types=INTEGER)
def _multiply(context: Context) -> Step:
    type_name = context.take_type()
    part = context.choose("lo", "hi", "wide")
    adds = context.instruction.opcode == "mad"
    destination, *sources = context.operands(4 if adds else 3)
    a, b = (context.source(operand, type_name) for operand in sources[:2])
    result_type = wider(type_name) if part == "wide" else type_name
    addend = context.source(sources[2], result_type) if adds else None
    target = context.target(destination, result_type)
    wide = DTYPES[result_type]

    def step(mask: Mask) -> None:
        if part == "lo":
            product = a * b
        elif part == "wide":
            product = np.multiply(a, b, dtype=wide)
        else:
            product = multiply_high(a, b)
        write(target, product if addend is None else product + addend, mask)

    def multiply_low(mask: Mask) -> None:
        np.multiply(a, b, out=target, where=mask)

    return multiply_low if part == "lo" and not adds else step


@instruction("div", "rem", types=INTEGER)
def _divide(context: Context) -> Step:
    type_name = context.take_type()
    destination, *sources = context.operands(3)
    a, b = (context.source(operand, type_name) for operand in sources)
    target = context.target(destination, type_name)
    wants_quotient = context.instruction.opcode == "div"

    def step(mask: Mask) -> None:
        zero = (b == 0) & mask
        if np.count_nonzero(zero):
            raise Fault("division by zero", "the result is undefined", int(np.flatnonzero(zero)[0]))
        divisor = np.where(b == 0, b.dtype.type(1), b)
        quotient = divide(a, divisor)
        write(target, quotient if wants_quotient else a - quotient * divisor, mask)

    return step


@instruction("min", "max", types=INTEGER)
def _minimum(context: Context) -> Step:
    type_name = context.take_type()
    destination, *sources = context.operands(3)
    a, b = (context.source(operand, type_name) for operand in sources)
    target = context.target(destination, type_name)
    operation = np.minimum if context.instruction.opcode == "min" else np.maximum

    def step(mask: Mask) -> None:
        operation(a, b, out=target, where=mask)

    return step


@instruction("abs", "neg", types=SIGNED)
def _negate(context: Context) -> Step:
    type_name = context.take_type()
    destination, operand = context.operands(2)
    source, target = context.source(operand, type_name), context.target(destination, type_name)
    operation = np.negative if context.instruction.opcode == "neg" else np.abs

    def step(mask: Mask) -> None:
        operation(source, out=target, where=mask)

    return step


@instruction("sad", types=INTEGER)
def _sum_of_difference(context: Context) -> Step:
    type_name = context.take_type()
    destination, *sources = context.operands(4)
    a, b, c = (context.source(operand, type_name) for operand in sources)
    target = context.target(destination, type_name)

    def step(mask: Mask) -> None:
        write(target, c + np.where(a > b, a - b, b - a), mask)

    return step
