"""Loads and stores, fences and prefetches."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.context import Context, Step, instruction
from tests.cuda.ptx.ports import SPACES, Port, acting, addresses
from tests.cuda.ptx.syntax import Address, Operand, Sink, Symbol
from tests.cuda.ptx.types import DTYPES, Array, Mask, size_of

# Modifiers that say how a cache treats the access or what order other threads see it in. Threads of this engine run one
# after another and there is no cache, so they change nothing.
_ORDER = ("weak", "volatile", "relaxed", "acquire", "release")
_SCOPE = ("cta", "gpu", "sys", "cluster")
_CACHE = ("ca", "cg", "cs", "lu", "cv", "wb", "wt", "nc")
_EVICTION = (
    "L1::no_allocate",
    *(f"{level}::evict_{how}" for level in ("L1", "L2") for how in ("normal", "unchanged", "first", "last")),
)
_PREFETCH = ("L2::64B", "L2::128B", "L2::256B")


def _take_hints(context: Context) -> None:
    order = context.choose(*_ORDER, default="weak")
    if order in ("relaxed", "acquire", "release"):
        context.choose(*_SCOPE)
    for group in (_CACHE, _EVICTION, _PREFETCH):
        context.choose(*group, default="")


class _Form:
    """What ld and st have in common: type, vector width, hints, space."""

    def __init__(self, context: Context) -> None:
        self.type_name = context.take_type()
        vector = context.choose("v2", "v4", default="v1")
        self.count = int(vector[1])
        self.space = context.choose(*SPACES, default="generic")
        _take_hints(context)
        self.dtype = DTYPES[self.type_name]
        self.size = size_of(self.type_name) * self.count
        if self.type_name == "pred" or self.size > 16:
            context.refuse(f"{self.count} elements of .{self.type_name}")

    def elements(self, context: Context, operand: Operand) -> tuple[Operand, ...]:
        """The registers of the vector."""
        items = context.items(operand)
        if len(items) != self.count:
            context.refuse(f"{len(items)} registers for .v{self.count}")
        return items


def _parameter_buffer(context: Context, operand: Operand, size: int) -> Array | None:
    """The bytes [lanes, size] of a function's parameter at the address; None for a kernel's parameter."""
    if not isinstance(operand, Address) or not isinstance(operand.base, Symbol):
        return None
    symbol = operand.base
    kernel_parameter = context.function.is_kernel and symbol.name in context.core.parameters.addresses
    buffer = None if kernel_parameter else context.core.buffers.get((context.function.name, symbol.name))
    if buffer is None:
        return None
    start = operand.offset + symbol.offset
    if start < 0 or start + size > buffer.shape[1] or start % size:
        context.refuse(f"{size} bytes at {start} of a parameter of {buffer.shape[1]} bytes")
    return buffer[:, start : start + size]


@instruction("ld", "ldu")
def _load(context: Context) -> Step:
    form = _Form(context)
    destination, source = context.operands(2)
    items = form.elements(context, destination)
    targets = [
        (i, context.target(item, form.type_name, wide=True))
        for i, item in enumerate(items)
        if not isinstance(item, Sink)
    ]
    count, dtype, size = form.count, form.dtype, form.size
    buffer = _parameter_buffer(context, source, size) if form.space == "param" else None
    if buffer is not None:
        return _load_parameter(buffer.view(dtype), targets)
    address, port = addresses(context, source), Port(context.core, form.space)
    single = targets[0][1] if count == 1 and targets else None

    def step(mask: Mask) -> None:
        words = port.load(address(), mask, size)
        if single is not None:
            single[... if mask is True else mask] = words.view(dtype)
            return
        elements = words.view(dtype).reshape(-1, count)
        for i, target in targets:
            target[... if mask is True else mask] = elements[:, i]

    return step


def _load_parameter(values: Array, targets: list[tuple[int, Array]]) -> Step:
    def step(mask: Mask) -> None:
        for i, target in targets:
            target[... if mask is True else mask] = acting(values[:, i], mask)

    return step


@instruction("st")
def _store(context: Context) -> Step:
    form = _Form(context)
    destination, operand = context.operands(2)
    items = form.elements(context, operand)
    sources = [context.source(item, form.type_name, wide=True) for item in items]
    dtype, size = form.dtype, form.size
    if form.space == "const":
        context.refuse("constant memory cannot be stored to")
    if form.space == "param":
        buffer = _parameter_buffer(context, destination, size)
        if buffer is None:
            context.refuse("only a function's parameters can be stored to")
        return _store_parameter(buffer.view(dtype), sources)
    address, port = addresses(context, destination), Port(context.core, form.space)
    word = np.dtype(f"u{min(size, 8)}")

    def store_one(mask: Mask) -> None:
        port.store(address(), acting(single, mask).view(word), mask, size)

    def store_many(mask: Mask) -> None:
        elements = np.stack([acting(source, mask) for source in sources], 1)
        words = elements.view(word)
        port.store(address(), words if size == 16 else words[:, 0], mask, size)

    single = sources[0]
    # A part of a wider register is strided; such a source is copied first.
    if form.count == 1 and not single.flags.c_contiguous:
        strided = single
        return lambda mask: port.store(address(), acting(strided, mask).copy().view(word), mask, size)
    return store_one if form.count == 1 else store_many


def _store_parameter(values: Array, sources: list[Array]) -> Step:
    def step(mask: Mask) -> None:
        for i, source in enumerate(sources):
            values[... if mask is True else mask, i] = acting(source, mask)

    return step


@instruction("membar", "fence")
def _fence(context: Context) -> Step:
    context.choose("acq_rel", "sc", "acquire", "release", default="")
    context.choose("cta", "gl", "gpu", "sys")
    context.operands(0)
    return _nothing


@instruction("prefetch", "prefetchu")
def _prefetch(context: Context) -> Step:
    context.choose("global", "local", default="")
    context.choose("L1", "L2")
    context.operands(1)
    return _nothing


@instruction("nanosleep")
def _sleep(context: Context) -> Step:
    context.take_type()
    context.operands(1)
    return _nothing


def _nothing(mask: Mask) -> None:
    """Orders or hints only."""
