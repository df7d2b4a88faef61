"""How loads and stores reach a state space: addresses of the instruction, the lanes that act, generic addresses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tests.cuda.ptx.context import Context
from tests.cuda.ptx.core import Core
from tests.cuda.ptx.errors import Fault
from tests.cuda.ptx.memory import (
    GLOBAL_BASE,
    LOCAL_BASE,
    LOCAL_WINDOW,
    PARAM_BASE,
    PARAM_WINDOW,
    SHARED_BASE,
    SHARED_WINDOW,
    WINDOW_BITS,
    Space,
)
from tests.cuda.ptx.syntax import Address, Operand, Register
from tests.cuda.ptx.types import Array, Mask

SPACES = ("global", "shared", "shared::cta", "local", "const", "param")
_BY_WINDOW = {
    GLOBAL_BASE >> WINDOW_BITS: ("global", 0),
    (SHARED_WINDOW + SHARED_BASE) >> WINDOW_BITS: ("shared", SHARED_WINDOW),
    (LOCAL_WINDOW + LOCAL_BASE) >> WINDOW_BITS: ("local", LOCAL_WINDOW),
    (PARAM_WINDOW + PARAM_BASE) >> WINDOW_BITS: ("param", PARAM_WINDOW),
}


def addresses(context: Context, operand: Operand) -> Callable[[], Array]:
    """Reads the addresses of [base + offset] as int64."""
    if not isinstance(operand, Address):
        context.refuse(f"{operand}: not an address")
    offset = np.int64(operand.offset)
    if isinstance(operand.base, Register):
        wide = operand.base.type in ("b64", "u64", "s64")
        base = context.source(operand.base, "u64" if wide else "u32")
        if wide:
            signed = base.view(np.int64)
            return (lambda: signed + offset) if offset else (lambda: signed)
        # A 32-bit address wraps at 32 bits.
        narrow = np.uint32(operand.offset & 0xFFFF_FFFF)
        return lambda: (base + narrow).astype(np.int64)
    base = context.source(operand.base, "u64")
    return lambda: base.view(np.int64) + offset


def acting(values: Array, mask: Mask) -> Array:
    """The values of the lanes that act."""
    return values if isinstance(mask, bool) else values[mask]


def on_lanes(fault: Fault, mask: Mask) -> Fault:
    """The fault with its position among the acting lanes turned into a lane."""
    if fault.lane is not None and not isinstance(mask, bool):
        fault.lane = int(np.flatnonzero(mask)[fault.lane])
    return fault


class Port:
    """Loads and stores of one state space, or of generic addresses."""

    def __init__(self, core: Core, space: str) -> None:
        self._core = core
        self._name = {"shared::cta": "shared", "const": "global"}.get(space, space)

    def space(self) -> Space:
        """The space as it is now; memories change between launches."""
        core = self._core
        return {"global": core.memory, "shared": core.shared, "local": core.local, "param": core.parameters}[self._name]

    def load(self, address: Array, mask: Mask, size: int) -> Array:
        """One word of `size` bytes for each acting lane; `address` has all lanes."""
        try:
            return self._load(acting(address, mask), acting(self._core.threads, mask), size)
        except Fault as fault:
            raise on_lanes(fault, mask) from None

    def store(self, address: Array, values: Array, mask: Mask, size: int) -> None:
        """Stores the words of the acting lanes; `address` has all lanes, `values` only theirs."""
        try:
            self._store(acting(address, mask), acting(self._core.threads, mask), values, size)
        except Fault as fault:
            raise on_lanes(fault, mask) from None

    def _load(self, address: Array, threads: Array, size: int) -> Array:
        if self._name == "generic":
            result: Array | None = None
            for port, chosen, here in self._routes(address):
                part = port._load(here, threads[chosen], size)
                if result is None:
                    result = np.zeros((len(address), *part.shape[1:]), part.dtype)
                result[chosen] = part
            assert result is not None
            return result
        if self._name == "local":
            address = self._core.local.place(address, threads, size)
        return self.space().load(address, size)

    def _store(self, address: Array, threads: Array, values: Array, size: int) -> None:
        if self._name == "generic":
            for port, chosen, here in self._routes(address):
                port._store(here, threads[chosen], values[chosen], size)
            return
        if self._name == "param":
            raise Fault("read-only", "store to a kernel parameter", 0)
        if self._name == "local":
            address = self._core.local.place(address, threads, size)
        self.space().store(address, values, size)

    def _routes(self, address: Array) -> list[tuple[Port, Array, Array]]:
        """(port, which of the addresses, those addresses in its own space) for every space that is addressed."""
        windows = address >> WINDOW_BITS
        found = []
        for window in np.unique(windows).tolist():
            chosen = windows == window
            if window not in _BY_WINDOW:
                position = int(np.flatnonzero(chosen)[0])
                where = int(address[position]) & (1 << 64) - 1
                raise Fault("out of bounds", f"generic address {where:#x} is in no state space", position)
            name, base = _BY_WINDOW[window]
            found.append((Port(self._core, name), chosen, address[chosen] - base))
        return found
