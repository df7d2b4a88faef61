"""cp.async: copies to shared memory that have happened only when they are waited for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.cuda.ptx.context import Context, Step, instruction
from tests.cuda.ptx.core import Core
from tests.cuda.ptx.errors import Fault
from tests.cuda.ptx.memory import IN_FLIGHT, POISON, UNINITIALISED
from tests.cuda.ptx.ports import Port, acting, addresses, on_lanes
from tests.cuda.ptx.types import Array, Mask


@dataclass
class Copy:
    """What one instruction copies: for each lane that acts its group, where in shared memory, and the bytes."""

    lanes: Array
    group: Array
    index: Array
    words: Array
    size: int


class CopyQueue:
    """The copies in flight of the lanes of one cohort. Groups are each thread's own."""

    def __init__(self, lanes: int) -> None:
        self.committed = np.zeros(lanes, np.int64)
        self.copies: list[Copy] = []

    def issue(self, core: Core, address: Array, words: Array, mask: Mask, size: int) -> None:
        """Notes a copy; until it lands its destination is neither readable nor writable."""
        index = core.shared.check_store(address, size)
        data, shadow, _ = core.shared.words[size]
        data[index] = _repeated(POISON, data.dtype)
        shadow[index] = _repeated(IN_FLIGHT | UNINITIALISED, shadow.dtype)
        lanes = np.flatnonzero(core.everyone & mask)
        self.copies.append(Copy(lanes, self.committed[lanes], index, words, size))

    def commit(self, mask: Mask) -> None:
        """Closes the group of each acting lane."""
        self.committed += mask

    def wait(self, core: Core, mask: Mask, pending: int) -> None:
        """Lands what each acting lane has committed, except for its latest `pending` groups."""
        waiting = np.where(core.everyone & mask, self.committed - pending, 0)
        left = []
        for copy in self.copies:
            lands = copy.group < waiting[copy.lanes]
            data, shadow, _ = core.shared.words[copy.size]
            data[copy.index[lands]] = copy.words[lands]
            shadow[copy.index[lands]] = 0
            if np.count_nonzero(lands) < len(lands):
                stays = ~lands
                rest = (copy.lanes[stays], copy.group[stays], copy.index[stays], copy.words[stays])
                left.append(Copy(*rest, copy.size))
        self.copies = left


def _repeated(byte: int, dtype: np.dtype[Any]) -> int:
    return int.from_bytes(bytes([byte]) * dtype.itemsize, "little")


@instruction("cp")
def _copy(context: Context) -> Step:
    if not context.flag("async"):
        context.refuse("only cp.async")
    if context.flag("commit_group"):
        context.operands(0)
        return lambda mask: context.core.copies.commit(mask)
    if context.flag("wait_group"):
        (operand,) = context.operands(1)
        pending = context.constant(operand)
        return lambda mask: context.core.copies.wait(context.core, mask, pending)
    if context.flag("wait_all"):
        context.operands(0)
        return _wait_all(context)
    return _issue(context)


def _wait_all(context: Context) -> Step:
    def step(mask: Mask) -> None:
        # Also of what has not been committed.
        context.core.copies.commit(mask)
        context.core.copies.wait(context.core, mask, 0)

    return step


def _issue(context: Context) -> Step:
    cache = context.choose("ca", "cg")
    context.choose("shared", "shared::cta")
    context.choose("global")
    context.choose("L2::64B", "L2::128B", "L2::256B", default="")
    destination, origin, length, *rest = context.operands(3, 4)
    size = context.constant(length)
    if size not in ((16,) if cache == "cg" else (4, 8, 16)):
        context.refuse(f"copies of {size} bytes with .{cache}")
    to, source = addresses(context, destination), addresses(context, origin)
    source_size = context.source(rest[0], "u32") if rest else None
    core, port = context.core, Port(context.core, "global")

    def step(mask: Mask) -> None:
        begin = source()
        misaligned = np.flatnonzero((begin & (size - 1) != 0) & mask)
        if misaligned.size:
            lane = int(misaligned[0])
            raise Fault("misaligned", f"cp.async of {size} bytes from address {int(begin[lane]):#x}", lane)
        counts = None if source_size is None else acting(source_size, mask)
        if counts is None or np.count_nonzero(counts != size) == 0:
            words = port.load(begin, mask, size)
        else:
            words = _partial(core, port, begin, mask, counts, size)
        try:
            core.copies.issue(core, acting(to(), mask), words, mask, size)
        except Fault as fault:
            raise on_lanes(fault, mask) from None

    return step


def _partial(core: Core, port: Port, address: Array, mask: Mask, counts: Array, size: int) -> Array:
    """Loads only the first `counts` bytes of each word; the rest is zero."""
    lanes = np.flatnonzero(core.everyone & mask)
    over = np.flatnonzero(counts > size)
    if over.size:
        lane = int(lanes[over[0]])
        raise Fault("cp.async", f"source size {int(counts[over[0]])} of a copy of {size} bytes", lane)
    bytes_ = np.zeros((len(lanes), size), np.uint8)
    whole = counts == size
    if np.count_nonzero(whole):
        chosen = np.zeros(core.lanes, np.bool_)
        chosen[lanes[whole]] = True
        bytes_[whole] = port.load(address, chosen, size).view(np.uint8).reshape(-1, size)
    for byte in range(int(counts[~whole].max(initial=0))):
        part = ~whole & (byte < counts)
        chosen = np.zeros(core.lanes, np.bool_)
        chosen[lanes[part]] = True
        bytes_[part, byte] = port.load(address + byte, chosen, 1)
    words = bytes_.view(np.dtype(f"u{min(size, 8)}"))
    return words if size == 16 else words[:, 0]
