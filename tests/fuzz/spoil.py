"""One argument of a valid call, changed: what a user, or a bug in the code before, may give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.fuzz.draw import Draw

HUGE = (2**31, 2**32 + 1, 2**63, -(2**63), 2**64)
# Spoils of another type than what the argument takes: Python's own error says enough of them.
OTHER_TYPES = ("nothing", "text", "fraction", "object")


def other_type(kind: str) -> Any:
    return {"nothing": None, "text": "x", "fraction": 2.5, "object": object()}[kind]


def spoiled(draw: Draw, value: Any, sized: bool) -> tuple[str, Any]:
    """The kind of change, and the changed value. sized: it asks for memory, and is not made huge."""
    if draw.number(0, 5) == 5:
        kind = draw.one(*OTHER_TYPES)
        return kind, other_type(kind)
    if isinstance(value, Tensor):
        return _apply(draw, value, TENSORS)
    if isinstance(value, np.ndarray):
        return _apply(draw, value, ARRAYS)
    if isinstance(value, bool):
        return "another", not value
    if isinstance(value, int):
        return "number", draw.one(-1, 0, value + 1, *(() if sized else HUGE))
    if isinstance(value, float):
        return "number", draw.one(float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 1e300)
    if isinstance(value, str):
        return "name", draw.one("", "unknown", value.upper())
    if isinstance(value, list | tuple):
        return _list(draw, value, sized)
    kind = draw.one(*OTHER_TYPES[1:])
    return kind, other_type(kind)


def _apply(draw: Draw, value: Any, changes: dict[str, Callable[[Any], Any]]) -> tuple[str, Any]:
    kind = draw.one(*changes)
    try:
        return kind, changes[kind](value)
    except (RuntimeError, IndexError, ValueError):  # of an array without such a dimension
        return "rank", value[None]


def _list(draw: Draw, value: Any, sized: bool) -> tuple[str, Any]:
    kind = draw.one("empty", "longer", "twice", "element")
    listed = list(value)
    if kind == "element" and listed:
        at = draw.number(0, len(listed) - 1)
        kind, listed[at] = spoiled(draw, listed[at], sized)
        kind = kind if kind in OTHER_TYPES else "element"
    elif kind == "empty":
        listed = []
    elif kind == "longer":
        listed = listed + listed[:1]
    elif listed:
        listed[-1] = listed[0]
    return kind, tuple(listed) if isinstance(value, tuple) else listed


def _overwritten(x: Any, value: float) -> Any:
    out = x.clone() if isinstance(x, Tensor) else x.copy()
    flat = out.reshape(-1)
    flat[len(flat) // 2] = value
    return flat.reshape(x.shape)


COMMON: dict[str, Callable[[Any], Any]] = {
    "rank": lambda x: x[None],
    "row": lambda x: x[0],
    "shorter": lambda x: x[..., :-1],
    "fewer": lambda x: x[:-1],
    "strided": lambda x: x[..., ::2],
    "flat": lambda x: x.reshape(-1),
    "negative": lambda x: _overwritten(x, -1),
    "large": lambda x: _overwritten(x, 10**6),
    "equal": lambda x: x * 0 + x.reshape(-1)[0],
}
TENSORS: dict[str, Callable[[Any], Any]] = {
    **COMMON,
    "longer": lambda x: torch.cat([x, x], -1),
    "more": lambda x: torch.cat([x, x]),
    "turned": lambda x: x.mT,
    "float16": lambda x: x.to(torch.float16),
    "float32": lambda x: x.to(torch.float32),
    "float64": lambda x: x.to(torch.float64),
    "int32": lambda x: x.to(torch.int32),
    "int64": lambda x: x.to(torch.int64),
    "bool": lambda x: x.to(torch.bool),
    "complex": lambda x: x.to(torch.complex64),
    "meta": lambda x: x.to("meta"),
    "shared": lambda x: x[:1].expand(x.shape),
}


def _read_only(x: Any) -> Any:
    out = x.copy()
    out.flags.writeable = False
    return out


def _misaligned(x: Any) -> Any:
    out = np.frombuffer(bytearray(x.nbytes + 1), np.uint8)[1:].view(x.dtype).reshape(x.shape)
    out[...] = x
    return out


ARRAYS: dict[str, Callable[[Any], Any]] = {
    **COMMON,
    "longer": lambda x: np.concatenate([x, x], -1),
    "more": lambda x: np.concatenate([x, x]),
    "turned": lambda x: np.swapaxes(x, -1, -2),
    "float16": lambda x: x.astype(np.float16),
    "float32": lambda x: x.astype(np.float32),
    "float64": lambda x: x.astype(np.float64),
    "int32": lambda x: x.astype(np.int32),
    "int64": lambda x: x.astype(np.int64),
    "complex": lambda x: x.astype(np.complex64),
    "byte order": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "backwards": lambda x: x[::-1].copy()[::-1],
    "read only": _read_only,
    "misaligned": _misaligned,
    "shared": lambda x: np.lib.stride_tricks.as_strided(x, x.shape, (0,) * x.ndim),
}
