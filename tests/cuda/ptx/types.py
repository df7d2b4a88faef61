"""PTX's fundamental types and how numpy holds them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# An array of one value a lane, and the lanes that act: an array of bool, or True for all of them.
Array = NDArray[Any]
Mask = NDArray[np.bool_] | bool

# numpy has no bfloat16: its bits travel as uint16. Packed pairs travel as uint32.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(dtype)
    for name, dtype in {
        "u8": np.uint8,
        "u16": np.uint16,
        "u32": np.uint32,
        "u64": np.uint64,
        "s8": np.int8,
        "s16": np.int16,
        "s32": np.int32,
        "s64": np.int64,
        "b8": np.uint8,
        "b16": np.uint16,
        "b32": np.uint32,
        "b64": np.uint64,
        "f16": np.float16,
        "f32": np.float32,
        "f64": np.float64,
        "bf16": np.uint16,
        "f16x2": np.uint32,
        "bf16x2": np.uint32,
        "tf32": np.uint32,
        "pred": np.bool_,
    }.items()
}

UNSIGNED = frozenset({"u8", "u16", "u32", "u64"})
SIGNED = frozenset({"s8", "s16", "s32", "s64"})
INTEGER = UNSIGNED | SIGNED
BITS = frozenset({"b8", "b16", "b32", "b64"})
FLOAT = frozenset({"f32", "f64"})
HALF = frozenset({"f16", "bf16", "f16x2", "bf16x2"})
PREDICATE = frozenset({"pred"})

BITS_OF_SIZE: dict[int, np.dtype[Any]] = {n: np.dtype(f"u{n}") for n in (1, 2, 4, 8)}
SIGNED_OF_SIZE: dict[int, np.dtype[Any]] = {n: np.dtype(f"i{n}") for n in (1, 2, 4, 8)}


def size_of(name: str) -> int:
    """Bytes of one value; a predicate counts as one."""
    return DTYPES[name].itemsize


def wider(name: str) -> str:
    """The integer type of twice the width: what mul.wide gives."""
    return name[0] + str(2 * int(name[1:]))
