"""Bit-wise logic, shifts, bit fields and counts."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.syntax import Immediate
from tests.cuda.ptx.types import BITS, INTEGER, PREDICATE, SIGNED, Array, Mask

_ONE = np.uint64(1)
_32 = np.uint64(32)


@instruction("and", "or", "xor", types=BITS | PREDICATE)
def _logic(context: Context) -> Step:
    type_name = context.take_type()
    destination, *sources = context.operands(3)
    a, b = (context.source(operand, type_name) for operand in sources)
    target = context.target(destination, type_name)
    operation = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[context.instruction.opcode]

    def step(mask: Mask) -> None:
        operation(a, b, out=target, where=mask)

    return step


@instruction("not", types=BITS | PREDICATE)
def _not(context: Context) -> Step:
    type_name = context.take_type()
    destination, operand = context.operands(2)
    source, target = context.source(operand, type_name), context.target(destination, type_name)

    def step(mask: Mask) -> None:
        np.invert(source, out=target, where=mask)

    return step


@instruction("cnot", types=BITS)
def _logical_not(context: Context) -> Step:
    type_name = context.take_type()
    destination, operand = context.operands(2)
    source, target = context.source(operand, type_name), context.target(destination, type_name)
    return lambda mask: write(target, source == 0, mask)


@instruction("shl", "shr", types=BITS | INTEGER)
def _shift(context: Context) -> Step:
    type_name = context.take_type()
    destination, value, amount = context.operands(3)
    source, target = context.source(value, type_name), context.target(destination, type_name)
    count = context.source(amount, "u32")
    bits = np.uint32(8 * source.itemsize)
    last = bits - np.uint32(1)
    left = context.instruction.opcode == "shl"
    if left and type_name not in BITS:
        context.refuse("shl is for .b16, .b32 and .b64")
    operation = np.left_shift if left else np.right_shift
    arithmetic = type_name in SIGNED
    narrow = source.dtype

    def step(mask: Mask) -> None:
        # Shifting by the width or more gives zero, or only copies of the sign.
        result = operation(source, np.minimum(count, last).astype(narrow))
        if not arithmetic:
            result[count >= bits] = 0
        write(target, result, mask)

    if not isinstance(amount, Immediate) or amount.value >= bits:
        return step
    amounts = count.astype(narrow)

    def step_constant(mask: Mask) -> None:
        operation(source, amounts, out=target, where=mask)

    return step_constant


@instruction("shf", types=frozenset({"b32"}))
def _funnel_shift(context: Context) -> Step:
    type_name = context.take_type()
    direction, mode = context.choose("l", "r"), context.choose("wrap", "clamp")
    destination, *sources = context.operands(4)
    low, high, count = (context.source(operand, type_name) for operand in sources)
    target = context.target(destination, type_name)

    def step(mask: Mask) -> None:
        amount = (count & 31 if mode == "wrap" else np.minimum(count, 32)).astype(np.uint64)
        both = (high.astype(np.uint64) << _32) | low
        write(target, (both << amount) >> _32 if direction == "l" else both >> amount, mask)

    return step


@instruction("bfe", types=INTEGER)
def _extract_field(context: Context) -> Step:
    type_name = context.take_type()
    destination, value, *field = context.operands(4)
    source, target = context.source(value, type_name), context.target(destination, type_name)
    start, length = (context.source(operand, "u32") for operand in field)
    bits = 8 * source.itemsize

    def unsigned(mask: Mask) -> None:
        first, count = (start & 0xFF).astype(np.uint64), (length & 0xFF).astype(np.uint64)
        shifted = np.where(first < bits, source.astype(np.uint64) >> np.minimum(first, 63), 0)
        write(target, shifted & low_ones(count), mask)

    def signed(mask: Mask) -> None:
        first, count = (start & 0xFF).astype(np.int64), (length & 0xFF).astype(np.int64)
        # Above the field, and above the number, stand copies of the last bit.
        up = 63 - np.minimum(first + count - 1, bits - 1)
        field = (source.astype(np.int64) << np.minimum(up, 63)) >> np.minimum(up, 63)
        write(target, np.where(count == 0, 0, field >> np.minimum(first, 63)), mask)

    return signed if type_name in SIGNED else unsigned


def low_ones(count: Array) -> Array:
    """uint64 with the lowest `count` bits set; 64 or more gives all."""
    return np.where(count < 64, (_ONE << np.minimum(count, np.uint64(63))) - _ONE, ~np.uint64(0))


@instruction("bfi", types=BITS)
def _insert_field(context: Context) -> Step:
    type_name = context.take_type()
    destination, inserted, base, *field = context.operands(5)
    a, b = context.source(inserted, type_name), context.source(base, type_name)
    start, length = (context.source(operand, "u32") for operand in field)
    target = context.target(destination, type_name)
    bits = 8 * a.itemsize

    def step(mask: Mask) -> None:
        first, count = (start & 0xFF).astype(np.uint64), (length & 0xFF).astype(np.uint64)
        shift = np.minimum(first, 63)
        inside = np.where(first < bits, low_ones(count) << shift, np.uint64(0))
        moved = a.astype(np.uint64) << shift
        write(target, (b & ~inside) | (moved & inside), mask)

    return step


def bit_length(values: Array) -> Array:
    """Position of the highest set bit plus one; zero for zero. Values are unsigned."""
    wide = values.astype(np.uint64)
    upper, lower = (wide >> _32).astype(np.float64), (wide & np.uint64(0xFFFF_FFFF)).astype(np.float64)
    # frexp's exponent of an integer below 2^53 is its bit length.
    return np.where(upper > 0, np.frexp(upper)[1] + 32, np.frexp(lower)[1])


@instruction("popc", "clz", types=BITS)
def _count(context: Context) -> Step:
    type_name = context.take_type()
    destination, operand = context.operands(2)
    source, target = context.source(operand, type_name), context.target(destination, "u32")
    if context.instruction.opcode == "popc":
        return lambda mask: write(target, np.bitwise_count(source), mask)
    bits = 8 * source.itemsize
    return lambda mask: write(target, bits - bit_length(source), mask)


@instruction("bfind", types=INTEGER)
def _find(context: Context) -> Step:
    type_name = context.take_type()
    as_shift = context.flag("shiftamt")
    destination, operand = context.operands(2)
    source, target = context.source(operand, type_name), context.target(destination, "u32")
    bits = 8 * source.itemsize

    def step(mask: Mask) -> None:
        # Of a negative number the highest zero is looked for.
        magnitude = np.where(source < 0, ~source, source) if type_name in SIGNED else source
        position = bit_length(magnitude.view(f"u{source.itemsize}")) - 1
        found = np.where(position < 0, -1, bits - 1 - position if as_shift else position)
        write(target, found, mask)

    return step


@instruction("brev", types=BITS)
def _reverse(context: Context) -> Step:
    type_name = context.take_type()
    destination, operand = context.operands(2)
    source, target = context.source(operand, type_name), context.target(destination, type_name)
    size = source.itemsize
    reversed_byte = np.array([int(f"{byte:08b}"[::-1], 2) for byte in range(256)], np.uint8)

    def step(mask: Mask) -> None:
        bytes_ = np.ascontiguousarray(source).view(np.uint8).reshape(-1, size)
        write(target, np.ascontiguousarray(reversed_byte[bytes_][:, ::-1]).view(target.dtype)[:, 0], mask)

    return step


@instruction("prmt", types=frozenset({"b32"}))
def _permute(context: Context) -> Step:
    type_name = context.take_type()
    destination, *sources = context.operands(4)
    a, b, selector = (context.source(operand, type_name) for operand in sources)
    target = context.target(destination, type_name)

    def step(mask: Mask) -> None:
        both = (b.astype(np.uint64) << _32) | a
        result = np.zeros_like(both)
        for byte in range(4):
            choice = (selector >> np.uint32(4 * byte)).astype(np.uint64)
            chosen = (both >> ((choice & np.uint64(7)) << np.uint64(3))) & np.uint64(0xFF)
            # The fourth bit asks for eight copies of the byte's sign.
            sign = np.where(chosen & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
            result |= np.where(choice & np.uint64(8), sign, chosen) << np.uint64(8 * byte)
        write(target, result, mask)

    return step


@instruction("lop3", types=frozenset({"b32"}))
def _three_way_logic(context: Context) -> Step:
    type_name = context.take_type()
    destination, *sources, table = context.operands(5)
    a, b, c = (context.source(operand, type_name) for operand in sources)
    target, truth = context.target(destination, type_name), context.constant(table)

    def step(mask: Mask) -> None:
        result = np.zeros_like(a)
        for row in range(8):
            if truth >> row & 1:
                result |= (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
        write(target, result, mask)

    return step


@instruction("fns", types=frozenset({"b32"}))
def _find_nth(context: Context) -> Step:
    context.take_type()
    destination, value, start, count = context.operands(4)
    source, base, offset = context.source(value, "u32"), context.source(start, "u32"), context.source(count, "s32")
    target = context.target(destination, "u32")

    def find(bits: int, first: int, nth: int) -> int:
        if first > 31:
            return 0xFFFF_FFFF
        if nth == 0:
            return first if bits >> first & 1 else 0xFFFF_FFFF
        positions = range(first, 32) if nth > 0 else range(first, -1, -1)
        found = [position for position in positions if bits >> position & 1]
        return found[abs(nth) - 1] if len(found) >= abs(nth) else 0xFFFF_FFFF

    def step(mask: Mask) -> None:
        values = [find(*row) for row in zip(source.tolist(), base.tolist(), offset.tolist(), strict=True)]
        write(target, np.array(values, np.uint32), mask)

    return step
