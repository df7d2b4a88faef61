"""Comparisons and selections."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx import floats
from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.instructions.half import Halves
from tests.cuda.ptx.syntax import Operand
from tests.cuda.ptx.types import BITS, FLOAT, HALF, INTEGER, SIGNED, Array, Mask

Relation = Callable[[Array, Array], Array]

_ORDERED: dict[str, Relation] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
# lo, ls, hi and hs compare unsigned; only these and eq, ne may be asked of bits.
_UNSIGNED: dict[str, Relation] = {"lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal}
_INTEGER: dict[str, Relation] = {**_ORDERED, "ne": np.not_equal}


def _unordered(a: Array, b: Array) -> Array:
    return np.isnan(a) | np.isnan(b)


def _float_relation(name: str) -> Relation | None:
    """NaN makes a relation false, or true when its name ends with u."""
    if name == "num":
        return lambda a, b: ~_unordered(a, b)
    if name == "nan":
        return _unordered
    if name == "ne":
        return lambda a, b: (a != b) & ~_unordered(a, b)
    if name == "neu":
        return np.not_equal
    if name in _ORDERED:
        return _ORDERED[name]
    ordered = _ORDERED.get(name.removesuffix("u"))
    return None if ordered is None else lambda a, b: ordered(a, b) | _unordered(a, b)


def _relation(context: Context, type_name: str) -> Relation:
    name = context.modifiers.pop(0) if context.modifiers else ""
    if type_name in FLOAT | HALF:
        relation = _float_relation(name)
    elif type_name in BITS:
        relation = {"eq": np.equal, "ne": np.not_equal}.get(name)
    elif type_name in SIGNED:
        relation = _INTEGER.get(name)
    else:
        relation = (_INTEGER | _UNSIGNED).get(name)
    if relation is None:
        context.refuse(f".{name} does not compare .{type_name}")
    return relation


def _comparison(context: Context, type_name: str, operands: tuple[Operand, ...]) -> Callable[[], Array]:
    """Compares the two operands, and combines with the third if there is one. Pairs give two elements a lane."""
    relation = _relation(context, type_name)
    combine = context.choose("and", "or", "xor", default="none")
    flushes = context.flag("ftz")
    if (combine != "none") != (len(operands) == 3):
        context.refuse("a third operand and .and, .or or .xor go together")
    if flushes and type_name != "f32":
        context.refuse(".ftz is for .f32")
    if type_name in HALF:
        halves = Halves(context, type_name)
        if halves.packed and combine != "none":
            context.refuse("a third operand with packed operands")
        left, right = halves.source(operands[0]), halves.source(operands[1])
        kind = halves.kind
        compare: Callable[[], Array] = lambda: relation(floats.decode(left, kind), floats.decode(right, kind))  # noqa: E731
    else:
        a, b = context.source(operands[0], type_name), context.source(operands[1], type_name)
        compare = (lambda: relation(floats.flush(a), floats.flush(b))) if flushes else (lambda: relation(a, b))
    if combine == "none":
        return compare
    other = context.predicate(operands[2])
    operation = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}[combine]
    return lambda: operation(compare(), other())


@instruction("setp", types=BITS | INTEGER | FLOAT | HALF)
def _set_predicate(context: Context) -> Step:
    type_name = context.take_type()
    destination, *operands = context.operands(3, 4)
    first, second = context.pair(destination)
    target = context.target(first, "pred")
    opposite = None if second is None else context.target(second, "pred")
    if opposite is not None and len(operands) == 3:
        context.refuse("p|q with a third operand")
    compare = _comparison(context, type_name, tuple(operands))
    packed = type_name.endswith("x2")
    if packed and opposite is None:
        context.refuse("packed operands need p|q")

    def step(mask: Mask) -> None:
        result = compare()
        if packed:
            write(target, result[0::2], mask)
            if opposite is not None:
                write(opposite, result[1::2], mask)
            return
        write(target, result, mask)
        if opposite is not None:
            write(opposite, ~result, mask)

    return step


_TRUE: dict[str, int] = {
    "u32": 0xFFFF_FFFF,
    "s32": -1,
    "f32": 0x3F80_0000,
    "f16": 0x3C00,
    "bf16": 0x3F80,
    "u16": 0xFFFF,
    "s16": -1,
    "f16x2": 0x3C00,
    "bf16x2": 0x3F80,
}


@instruction("set", types=BITS | INTEGER | FLOAT | HALF)
def _set(context: Context) -> Step:
    type_name, result_type = context.take_type(), context.take_type()
    destination, *operands = context.operands(3, 4)
    packed = type_name.endswith("x2")
    if result_type not in _TRUE or packed != result_type.endswith("x2"):
        context.refuse(f"a result of .{result_type} is not known")
    compare = _comparison(context, type_name, tuple(operands))
    whole = context.target(destination, result_type)
    target = whole.view(np.uint16) if packed else whole.view(f"u{whole.itemsize}")
    true = target.dtype.type(_TRUE[result_type] & (1 << 8 * target.itemsize) - 1)

    def step(mask: Mask) -> None:
        wanted = np.repeat(mask, 2) if packed and not isinstance(mask, bool) else mask
        write(target, np.where(compare(), true, target.dtype.type(0)), wanted)

    return step


@instruction("selp", types=BITS | INTEGER | FLOAT)
def _select(context: Context) -> Step:
    type_name = context.take_type()
    destination, if_true, if_false, chosen = context.operands(4)
    a, b = context.source(if_true, type_name), context.source(if_false, type_name)
    target, condition = context.target(destination, type_name), context.predicate(chosen)
    return lambda mask: write(target, np.where(condition(), a, b), mask)


@instruction("slct", types=frozenset({"s32", "f32"}))
def _select_by_sign(context: Context) -> Step:
    selector_type, type_name = context.take_type(), context.take_type()
    flushes = context.flag("ftz")
    destination, if_positive, if_negative, selector = context.operands(4)
    a, b = context.source(if_positive, type_name), context.source(if_negative, type_name)
    target, sign = context.target(destination, type_name), context.source(selector, selector_type)

    def step(mask: Mask) -> None:
        values = floats.flush(sign) if flushes else sign
        write(target, np.where(values >= 0, a, b), mask)

    return step
