"""Address spaces: bytes, and one shadow byte for each that says whether a load may see it and a store may change it.

Buffers are named and far apart; what is not written is NaN (all bits set) and marked, so that reading it is an error
wherever it happens. Shadow 0 means written and readable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from tests.cuda.ptx.errors import Fault, LaunchError
from tests.cuda.ptx.syntax import Variable
from tests.cuda.ptx.types import Array

# Bits of the shadow.
UNINITIALISED = 1
IN_FLIGHT = 2
OUTSIDE = 4
_NO_STORE = IN_FLIGHT | OUTSIDE
POISON = 0xFF

# First addresses of the spaces, and what turns an address of a space into a generic one. None is zero, and shared and
# local addresses are no generic addresses even when cut to 32 bits: mixing them up is out of bounds.
GLOBAL_BASE = 0x7F40_0000_0000
SHARED_BASE = 0x0010_0000
LOCAL_BASE = 0x0020_0000
PARAM_BASE = 0x0030_0000
WINDOW_BITS = 40
SHARED_WINDOW = 0x5A00_3000_0000
LOCAL_WINDOW = 0x6B00_5000_0000
PARAM_WINDOW = 0x4C00_7000_0000

_GLOBAL_GAP = 256 * 1024
_SHARED_GAP = 1024
# From here on a report does not name the nearest buffer: it is hardly the one that was meant.
_FAR = 2**24
_SHIFT = {1: 0, 2: 1, 4: 2, 8: 3, 16: 4}


@dataclass(frozen=True)
class Region:
    """A named stretch of a space, `start` counted from the space's first byte."""

    name: str
    start: int
    size: int

    @property
    def end(self) -> int:
        """One past the last byte."""
        return self.start + self.size


class Space:
    """Bytes at consecutive addresses, some of them in regions and the rest out of bounds."""

    def __init__(self, name: str, base: int, size: int) -> None:
        self.name = name
        self.base = base
        self.regions: list[Region] = []
        self._set(np.full(size, POISON, np.uint8), np.full(size, OUTSIDE, np.uint8))

    def _set(self, data: Array, shadow: Array) -> None:
        self.data, self.shadow = data, shadow
        # (data, shadow, shadow bits that forbid a store) for each access size; 16 bytes are pairs of 8.
        self.words: dict[int, tuple[Array, Array, Any]] = {}
        for size in _SHIFT:
            dtype = np.dtype(f"u{min(size, 8)}")
            forbidden = dtype.type(int.from_bytes(bytes([_NO_STORE]) * dtype.itemsize, "little"))
            views = data.view(dtype), shadow.view(dtype)
            if size == 16:
                views = views[0].reshape(-1, 2), views[1].reshape(-1, 2)
            self.words[size] = (*views, forbidden)

    def add(self, region: Region, initialised: bool) -> None:
        """Makes a region accessible."""
        self.regions.append(region)
        self.shadow[region.start : region.end] = 0 if initialised else UNINITIALISED

    def load(self, address: Array, size: int) -> Array:
        """The words of `size` bytes at the addresses (int64), checked; 16-byte words come as rows of two."""
        offset = address - self.base
        data, shadow, _ = self.words[size]
        index = offset >> _SHIFT[size]
        # A clipped index is out of bounds: the space begins and ends with bytes of no region.
        if np.count_nonzero(shadow.take(index, 0, mode="clip")) or np.count_nonzero(offset & (size - 1)):
            raise self.fault("load", offset, size, UNINITIALISED | _NO_STORE)
        return data.take(index, 0)

    def store(self, address: Array, values: Array, size: int) -> None:
        """Writes words of `size` bytes; of lanes with the same address the last wins."""
        index = self.check_store(address, size)
        data, shadow, _ = self.words[size]
        data[index] = values
        shadow[index] = 0

    def check_store(self, address: Array, size: int) -> Array:
        """Indices of the words at the addresses, all of which may be written."""
        offset = address - self.base
        _, shadow, forbidden = self.words[size]
        index = offset >> _SHIFT[size]
        state = shadow.take(index, 0, mode="clip")
        if np.count_nonzero(state & forbidden) or np.count_nonzero(offset & (size - 1)):
            raise self.fault("store", offset, size, _NO_STORE)
        return index

    def fault(self, verb: str, offset: Array, size: int, bad: int) -> Fault:
        """What is wrong with the first bad access; its position in `offset` is the fault's lane."""
        for position, start in enumerate(offset.tolist()):
            inside = start >= 0 and start + size <= self.data.size
            state = int(np.bitwise_or.reduce(self.shadow[start : start + size])) if inside else OUTSIDE
            place = f"{verb} of {size} bytes at {self.describe(start)}"
            if state & OUTSIDE:
                return Fault("out of bounds", place, position)
            if start % size:
                return Fault("misaligned", f"{place}, address {start + self.base:#x}", position)
            if state & bad & IN_FLIGHT:
                return Fault("copy in flight", f"{place}, where a cp.async has not been waited for", position)
            if state & bad & UNINITIALISED:
                return Fault("uninitialised read", f"{place}, never written", position)
        raise AssertionError("no lane is at fault")

    def describe(self, offset: int) -> str:
        """Names the place by the region it is in or nearest to."""
        if not self.regions:
            return f"{self.name} address {offset + self.base:#x}; nothing is allocated there"
        nearest = min(self.regions, key=lambda r: max(r.start - offset, offset - r.end + 1, 0))
        if max(nearest.start - offset, offset - nearest.end) > _FAR:
            return f"{self.name} address {(offset + self.base) & (1 << 64) - 1:#x}, far from every buffer"
        name = f"{self.name} '{nearest.name}' ({nearest.size} bytes)"
        if offset < nearest.start:
            return f"{nearest.start - offset} bytes before {name}"
        if offset >= nearest.end:
            return f"{offset - nearest.end} bytes past the end of {name}"
        return f"byte {offset - nearest.start} of {name}"


class Memory(Space):
    """Global memory, as the host sees it. Buffers stand on 256-byte boundaries, far apart.

    bfloat16 arrays travel as uint16.
    """

    def __init__(self) -> None:
        super().__init__("global", GLOBAL_BASE, 4 * _GLOBAL_GAP)
        self._used = _GLOBAL_GAP
        self._arrays: dict[str, tuple[Region, tuple[int, ...], np.dtype[Any]]] = {}
        self._variables: dict[tuple[int, str], int] = {}
        # Kept alive, so that no other module gets the same id.
        self._owners: list[object] = []

    def upload(self, name: str, array: Array) -> int:
        """Allocates a buffer with a copy of the array; returns its address."""
        array = np.ascontiguousarray(array)
        region = self._allocate(name, array.nbytes, True)
        self.data[region.start : region.end] = array.reshape(-1).view(np.uint8)
        self._arrays[name] = region, array.shape, array.dtype
        return self.base + region.start

    def output(self, name: str, shape: int | Sequence[int], dtype: DTypeLike) -> int:
        """Allocates a buffer of NaN (all bits set) that counts as not written; returns its address."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        dtype = np.dtype(dtype)
        region = self._allocate(name, int(np.prod(shape)) * dtype.itemsize, False)
        self._arrays[name] = region, shape, dtype
        return self.base + region.start

    def download(self, name: str) -> Array:
        """A copy of the buffer, as it is now."""
        region, shape, dtype = self._find(name)
        return self.data[region.start : region.end].copy().view(dtype).reshape(shape)

    def unwritten(self, name: str) -> Array:
        """Which elements of the buffer have bytes that nothing ever wrote."""
        region, shape, dtype = self._find(name)
        shadow = self.shadow[region.start : region.end].reshape(-1, dtype.itemsize)
        unwritten: Array = (shadow != 0).any(1).reshape(shape)
        return unwritten

    def free(self, name: str) -> None:
        """Takes the buffer away; using its address afterwards is out of bounds."""
        region, _, _ = self._find(name)
        del self._arrays[name]
        self.regions.remove(region)
        self.regions.append(Region(f"{name} (freed)", region.start, region.size))
        self.shadow[region.start : region.end] = OUTSIDE

    def variable(self, owner: object, variable: Variable) -> int:
        """The address of a module's variable, which lives as long as this memory."""
        key = id(owner), variable.name
        if key not in self._variables:
            region = self._allocate(variable.name, variable.size, True)
            initial = variable.initial or bytes(variable.size)
            self.data[region.start : region.end] = np.frombuffer(initial, np.uint8)
            self._variables[key] = self.base + region.start
            self._owners.append(owner)
        return self._variables[key]

    def _find(self, name: str) -> tuple[Region, tuple[int, ...], np.dtype[Any]]:
        if name not in self._arrays:
            raise LaunchError(f"no buffer named {name!r}; there are {sorted(self._arrays)}")
        return self._arrays[name]

    def _allocate(self, name: str, size: int, initialised: bool) -> Region:
        if name in self._arrays:
            raise LaunchError(f"there is a buffer named {name!r} already")
        # An empty buffer still has an address of its own; nothing can be read there.
        start = self._used
        self._used += (size + 255) // 256 * 256 + _GLOBAL_GAP
        if self._used > self.data.size:
            data = np.full(2 * self._used, POISON, np.uint8)
            shadow = np.full(2 * self._used, OUTSIDE, np.uint8)
            data[:start], shadow[:start] = self.data[:start], self.shadow[:start]
            self._set(data, shadow)
        region = Region(name, start, size)
        self.add(region, initialised)
        return region


class SharedSpace(Space):
    """Shared memory of one block: each array with gaps around it, the dynamic part last.

    Args:
        variables: Static arrays.
        dynamic: The names of the dynamic part.
        dynamic_bytes: Its size.
        labels: What reports call the arrays, where that is not their name.
    """

    def __init__(
        self,
        variables: Sequence[Variable],
        dynamic: Sequence[Variable],
        dynamic_bytes: int,
        labels: Mapping[str, str],
    ) -> None:
        position = _SHARED_GAP
        self.addresses: dict[str, int] = {}
        regions = []
        for variable in variables:
            align = max(variable.align, 16)
            position = (position + align - 1) // align * align
            regions.append(Region(labels.get(variable.name, variable.name), position, variable.size))
            self.addresses[variable.name] = SHARED_BASE + position
            position += variable.size + _SHARED_GAP
        # All extern arrays are the same bytes.
        align = max([128, *(variable.align for variable in dynamic)])
        position = (position + align - 1) // align * align
        for variable in dynamic:
            self.addresses[variable.name] = SHARED_BASE + position
        if dynamic_bytes:
            regions.append(Region("dynamic shared memory", position, dynamic_bytes))
        size = (position + dynamic_bytes + _SHARED_GAP + 15) // 16 * 16
        super().__init__("shared", SHARED_BASE, size)
        for region in regions:
            self.add(region, False)
        self._fresh = self.shadow.copy()

    def reset(self) -> None:
        """A new block: nothing is written."""
        self.data.fill(POISON)
        np.copyto(self.shadow, self._fresh)


class LocalSpace(Space):
    """Local memory: the same addresses hold other bytes in each thread, so threads lie `stride` bytes apart."""

    def __init__(self, variables: Sequence[Variable], threads: int) -> None:
        position = 16
        self.addresses: dict[str, int] = {}
        regions = []
        for variable in variables:
            align = max(variable.align, 16)
            position = (position + align - 1) // align * align
            regions.append(Region(variable.name, position, variable.size))
            self.addresses[variable.name] = LOCAL_BASE + position
            position += variable.size + 16
        self.stride = (position + 15) // 16 * 16 if regions else 0
        super().__init__("local", LOCAL_BASE, max(self.stride * threads, 16))
        self.regions = regions
        for thread in range(threads if regions else 0):
            for region in regions:
                start = thread * self.stride + region.start
                self.shadow[start : start + region.size] = UNINITIALISED
        self._fresh = self.shadow.copy()

    def reset(self) -> None:
        """A new block: nothing is written."""
        self.data.fill(POISON)
        np.copyto(self.shadow, self._fresh)

    def place(self, address: Array, threads: Array, size: int) -> Array:
        """The addresses as this space counts them: each thread's own bytes."""
        offset = address - self.base
        outside = (offset < 0) | (offset + size > self.stride)
        if np.count_nonzero(outside):
            position = int(np.flatnonzero(outside)[0])
            place = f"access of {size} bytes at {self.describe(int(offset[position]))}"
            raise Fault("out of bounds", place, position)
        return address + threads.astype(np.int64) * self.stride

    def describe(self, offset: int) -> str:
        """Names the place within one thread's part."""
        return super().describe(offset % self.stride if self.stride and offset >= 0 else offset)


class ParameterSpace(Space):
    """The kernel's parameters: constant, and the same for all threads."""

    def __init__(self, parameters: Sequence[Variable]) -> None:
        position = 16
        self.addresses: dict[str, int] = {}
        regions = []
        for parameter in parameters:
            align = max(parameter.align, 1)
            position = (position + align - 1) // align * align
            regions.append(Region(parameter.name, position, parameter.size))
            self.addresses[parameter.name] = PARAM_BASE + position
            position += parameter.size
        super().__init__("parameter", PARAM_BASE, (position + 16 + 15) // 16 * 16)
        for region in regions:
            self.add(region, True)

    def set(self, values: Sequence[bytes]) -> None:
        """Takes the bytes of each parameter."""
        for region, value in zip(self.regions, values, strict=True):
            self.data[region.start : region.end] = np.frombuffer(value, np.uint8)
