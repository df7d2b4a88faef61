"""Bytes of the C heap that are in use, by glibc's own count."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable

_NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Counts(ctypes.Structure):
    """struct mallinfo2 of malloc.h, glibc 2.33 or newer."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _NAMES)


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _Counts


def in_use() -> int:
    """Of all arenas and of blocks with a mapping of their own; what a thread keeps for later calls counts as used."""
    counts = _mallinfo2()
    return int(counts.uordblks + counts.hblkhd)


def kept_by_each_call(call: Callable[[], object], allowed: float = 8.0, most: int = 1280) -> float:
    """Bytes that a call leaves in use, of the first round that keeps less than `allowed`, or of the last one.

    Caches (of allocators, by thread and size) fill now and then, ever more seldom, so each round is twice as long as
    the one before; a leak keeps the same at every call.
    """
    call()
    gc.collect()
    calls, kept = 10, float("inf")
    while kept >= allowed and calls <= most:
        before = in_use()
        for _ in range(calls):
            call()
        kept = (in_use() - before) / calls
        calls *= 2
    return kept
