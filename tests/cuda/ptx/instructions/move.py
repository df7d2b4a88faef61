"""mov and cvta."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.context import Context, Step, instruction, write
from tests.cuda.ptx.memory import (
    GLOBAL_BASE,
    LOCAL_BASE,
    LOCAL_WINDOW,
    PARAM_BASE,
    PARAM_WINDOW,
    SHARED_BASE,
    SHARED_WINDOW,
    WINDOW_BITS,
)
from tests.cuda.ptx.syntax import Sink, Vector
from tests.cuda.ptx.types import DTYPES, Mask, size_of

# What is added to an address of the space to make it generic.
_WINDOWS = {"global": 0, "const": 0, "shared": SHARED_WINDOW, "local": LOCAL_WINDOW, "param": PARAM_WINDOW}


@instruction("mov")
def _move(context: Context) -> Step:
    type_name = context.take_type()
    destination, operand = context.operands(2)
    if isinstance(destination, Vector):
        return _unpack(context, type_name, destination)
    if isinstance(operand, Vector):
        return _pack(context, type_name, operand)
    source, target = context.source(operand, type_name), context.target(destination, type_name)
    # As bits: numpy would be free to change a NaN on the way.
    if source.dtype.kind == "f":
        bits = np.dtype(f"u{source.itemsize}")
        source, target = source.view(bits), target.view(bits)
    return lambda mask: write(target, source, mask)


def _part_type(context: Context, type_name: str, count: int) -> str:
    size, remainder = divmod(size_of(type_name), count)
    if type_name not in ("b16", "b32", "b64") or remainder or size not in (1, 2, 4):
        context.refuse(f"{count} parts of .{type_name}")
    return f"b{8 * size}"


def _unpack(context: Context, type_name: str, destination: Vector) -> Step:
    _, operand = context.instruction.operands
    part = _part_type(context, type_name, len(destination.items))
    source = context.source(operand, type_name)
    count = len(destination.items)
    targets = [(i, context.target(d, part)) for i, d in enumerate(destination.items) if not isinstance(d, Sink)]
    dtype = DTYPES[part]

    def step(mask: Mask) -> None:
        # The first element is the lowest part; copied because a target may be the source's own register.
        parts = np.ascontiguousarray(source).view(dtype).reshape(-1, count).copy()
        for i, target in targets:
            write(target, parts[:, i], mask)

    return step


def _pack(context: Context, type_name: str, operand: Vector) -> Step:
    destination, _ = context.instruction.operands
    part = _part_type(context, type_name, len(operand.items))
    sources = [context.source(item, part) for item in operand.items]
    target = context.target(destination, type_name)

    def step(mask: Mask) -> None:
        write(target, np.stack(sources, 1).view(target.dtype)[:, 0], mask)

    return step


@instruction("cvta")
def _convert_address(context: Context) -> Step:
    type_name = context.take_type()
    if type_name != "u64":
        context.refuse("only 64-bit addresses")
    back = context.flag("to")
    space = context.choose(*_WINDOWS)
    destination, operand = context.operands(2)
    source, target = context.source(operand, type_name), context.target(destination, type_name)
    window = np.uint64(_WINDOWS[space])
    operation = np.subtract if back else np.add

    def step(mask: Mask) -> None:
        operation(source, window, out=target, where=mask)

    return step


@instruction("isspacep")
def _is_space(context: Context) -> Step:
    space = context.choose("global", "shared", "local", "param")
    destination, operand = context.operands(2)
    source, target = context.source(operand, "u64"), context.target(destination, "pred")
    first = {
        "global": GLOBAL_BASE,
        "shared": SHARED_WINDOW + SHARED_BASE,
        "local": LOCAL_WINDOW + LOCAL_BASE,
        "param": PARAM_WINDOW + PARAM_BASE,
    }[space]
    shift = np.uint64(WINDOW_BITS)
    return lambda mask: write(target, (source >> shift) == np.uint64(first >> WINDOW_BITS), mask)
