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


def kept_by_each_call(call: Callable[[], object], allowed: float = 8.0, most: int = 640) -> float:
    """Bytes that a call leaves in use, over as many calls as it takes to see no more than `allowed`, at most `most`.

    Caches (of allocators, by thread and size) are full after some calls; a leak keeps the same at every call.
    """
    call()
    gc.collect()
    before, done, kept = in_use(), 0, float("inf")
    while kept > allowed and done < most:
        for _ in range(max(10, done)):
            call()
            done += 1
        kept = (in_use() - before) / done
    return kept
