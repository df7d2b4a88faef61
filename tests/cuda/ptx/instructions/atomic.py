"""atom and red: one lane after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.cuda.ptx.context import Context, Step, instruction
from tests.cuda.ptx.ports import SPACES, Port, acting, addresses
from tests.cuda.ptx.types import BITS, DTYPES, INTEGER, UNSIGNED, Mask

Update = Callable[[Any, Any], Any]

_ARITHMETIC: dict[str, Update] = {"add": lambda old, new: old + new, "min": min, "max": max}
_LOGIC: dict[str, Update] = {
    "and": lambda old, new: old & new,
    "or": lambda old, new: old | new,
    "xor": lambda old, new: old ^ new,
}
_ALLOWED_TYPES = (INTEGER | BITS | {"f32", "f64"}) - {"u8", "s8", "b8", "u16", "s16"}


def _update(operation: str, type_name: str) -> Update | None:
    zero = DTYPES[type_name].type(0)
    if type_name in BITS:
        return _LOGIC.get(operation) or (_exchange if operation == "exch" else None)
    if operation == "add" or (operation in ("min", "max") and type_name in INTEGER):
        return _ARITHMETIC[operation]
    if operation == "inc" and type_name in UNSIGNED:
        return lambda old, limit: zero if old >= limit else old + old.dtype.type(1)
    if operation == "dec" and type_name in UNSIGNED:
        return lambda old, limit: limit if old == 0 or old > limit else old - old.dtype.type(1)
    return None


def _exchange(old: Any, new: Any) -> Any:
    return new


@instruction("atom", "red", types=_ALLOWED_TYPES)
def _atomic(context: Context) -> Step:
    type_name = context.take_type()
    operation = context.choose("add", "min", "max", "inc", "dec", "and", "or", "xor", "exch", "cas")
    context.choose("relaxed", "acquire", "release", "acq_rel", default="")
    context.choose("cta", "gpu", "sys", default="")
    context.flag("noftz")
    space = context.choose(*SPACES[:3], default="generic")
    returns, compares = context.instruction.opcode == "atom", operation == "cas"
    operands = context.operands(2 + returns + compares)
    target = context.target(operands[0], type_name) if returns else None
    address, *rest = operands[1:] if returns else operands
    where, port = addresses(context, address), Port(context.core, space)
    values = [context.source(operand, type_name) for operand in rest]
    update = None if compares else _update(operation, type_name)
    if update is None and not (compares and type_name in BITS and returns):
        context.refuse(f".{operation} of .{type_name}")
    dtype = DTYPES[type_name]
    size = dtype.itemsize
    bits = np.dtype(f"u{size}")

    def step(mask: Mask) -> None:
        everyone, arguments = where(), [acting(value, mask) for value in values]
        lanes = np.flatnonzero(context.core.everyone & mask)
        one = np.zeros(context.core.lanes, np.bool_)
        for position, lane in enumerate(lanes.tolist()):
            one[lane] = True
            old = port.load(everyone, one, size).view(dtype)
            if update is not None:
                new = update(old[0], arguments[0][position])
            else:
                new = arguments[1][position] if old[0] == arguments[0][position] else old[0]
            port.store(everyone, np.array([new], dtype).view(bits), one, size)
            if target is not None:
                target[lane] = old[0]
            one[lane] = False

    return step
