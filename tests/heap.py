"""Bytes of the C heap that are in use, by glibc's own count."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

_NAMES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _Counts(ctypes.Structure):
    """struct mallinfo2 of malloc.h, glibc 2.33 or newer."""

    _fields_ = tuple((name, ctypes.c_size_t) for name in _NAMES)


_mallinfo2 = ctypes.CDLL(None).mallinfo2
_mallinfo2.restype = _Counts


def in_use() -> int:
    """Of the main arena and of blocks with a mapping of their own; other threads' arenas are not counted."""
    counts = _mallinfo2()
    return int(counts.uordblks + counts.hblkhd)


def kept_by_each_call(call: Callable[[], object], calls: int = 5) -> float:
    """Bytes that a call leaves in use; the least of three rounds, since caches grow now and then and leaks always."""
    found = []
    for _ in range(3):
        before = in_use()
        for _ in range(calls):
            call()
        found.append((in_use() - before) / calls)
    return min(found)
