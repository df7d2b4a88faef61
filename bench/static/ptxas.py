"""The figures that `ptxas -v` prints."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENTRY = re.compile(r"Compiling entry function '(\S+)' for '(\S+)'")
_PROPERTIES = re.compile(r"Function properties for (\S+)")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers(?:, used \d+ barriers)?(.*)")
_SHARED = re.compile(r"(\d+) bytes smem")


@dataclass(frozen=True)
class Usage:
    """What one kernel takes: registers a thread, bytes of static shared memory, stack and spills."""

    registers: int
    shared: int
    stack: int
    spills: int


def parse(text: str) -> dict[tuple[str, str], Usage]:
    """(architecture, kernel) -> its figures. Stack and spills include those of functions that a kernel calls."""
    found: dict[tuple[str, str], Usage] = {}
    entry: tuple[str, str] | None = None
    stack = spills = 0
    for line in text.splitlines():
        if match := _ENTRY.search(line):
            entry, stack, spills = (match[2], match[1]), 0, 0
        elif match := _STACK.search(line):
            stack += int(match[1])
            spills += int(match[2]) + int(match[3])
            if entry in found:  # a function of its own, printed after the kernel's line
                before = found[entry]
                found[entry] = Usage(before.registers, before.shared, stack, spills)
        elif (match := _USED.search(line)) and entry:
            shared = _SHARED.search(match[2])
            found[entry] = Usage(int(match[1]), int(shared[1]) if shared else 0, stack, spills)
    return found
