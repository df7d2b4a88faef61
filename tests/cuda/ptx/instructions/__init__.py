"""Every instruction that the engine knows; importing a group registers it."""

from __future__ import annotations

from tests.cuda.ptx.instructions import (
    access,
    async_copy,
    atomic,
    bits,
    compare,
    control,
    convert,
    floating,
    half,
    integer,
    move,
    tensor,
    warp,
)

__all__ = [
    "access",
    "async_copy",
    "atomic",
    "bits",
    "compare",
    "control",
    "convert",
    "floating",
    "half",
    "integer",
    "move",
    "tensor",
    "warp",
]
