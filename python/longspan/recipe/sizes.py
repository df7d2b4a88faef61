"""Sizes of memory as people write and read them."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_size(given: Any) -> int:
    """Bytes of a size: 24GiB (2^30), 8GB (10^9), 512 MiB, or a number of bytes. Raises ValueError for anything else."""
    allowed = "a size like 24GiB, 8GB or 512MiB, or a number of bytes"
    if isinstance(given, bool) or not isinstance(given, (int, str)):
        raise ValueError(f"must be {allowed}, not {given!r}")
    if isinstance(given, int):
        size = given
    else:
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", given)
        if match is None or (match[2] or "B").upper() not in _UNITS:
            raise ValueError(f"must be {allowed}, not {given!r}")
        size = int(float(match[1]) * _UNITS[(match[2] or "B").upper()])
    if size < 1:
        raise ValueError(f"must be at least 1 byte, not {given!r}")
    return size


def gib(count: float) -> str:
    """Bytes as '1.25 GiB'."""
    return f"{count / 2**30:.2f} GiB"
