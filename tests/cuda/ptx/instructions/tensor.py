"""Tensor-core operations: ldmatrix and mma.

Products are exact and summed in float64; hardware rounds the sum in its own, undocumented way. The fragment layouts are
those of the PTX ISA, "Matrix Fragments for mma".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from tests.cuda.ptx import floats
from tests.cuda.ptx.context import Context, instruction, write
from tests.cuda.ptx.core import WARP
from tests.cuda.ptx.operations import Collective
from tests.cuda.ptx.ports import Port, addresses
from tests.cuda.ptx.syntax import Vector
from tests.cuda.ptx.types import Array, Mask

_LANE = np.arange(WARP)
_ROW_OF_LANE, _QUARTER = _LANE // 4, _LANE % 4


@instruction("ldmatrix", types=frozenset({"b16"}))
def _load_matrices(context: Context) -> Collective:
    """Lane 8 i + r gives the address of row r of matrix i; register i of lane l gets two elements of row l // 4."""
    context.take_type()
    context.choose("sync")
    context.choose("aligned")
    context.choose("m8n8")
    count = int(context.choose("x1", "x2", "x4")[1])
    transposes = context.flag("trans")
    context.choose("shared", "shared::cta")
    destination, source = context.operands(2)
    items = context.items(destination)
    if len(items) != count or (count > 1 and not isinstance(destination, Vector)):
        context.refuse(f"{len(items)} registers for .x{count}")
    targets = [context.target(item, "b32") for item in items]
    address, port, core = addresses(context, source), Port(context.core, "shared"), context.core
    gives_address = np.arange(core.lanes) % WARP < 8 * count
    rows = np.zeros((core.lanes, 2), np.uint64)

    def step(mask: Mask) -> None:
        if mask is True and count == 4:
            words = port.load(address(), True, 16)
        else:
            chosen = gives_address & mask
            rows[chosen] = port.load(address(), chosen, 16)
            words = rows
        # [warp, matrix, row, column]
        matrices = words.view(np.uint16).reshape(-1, 4, 8, 8)
        if transposes:
            matrices = np.ascontiguousarray(matrices.swapaxes(2, 3))
        registers = matrices.view(np.uint32).reshape(-1, 4, WARP)
        for i, target in enumerate(targets):
            write(target, registers[:, i].reshape(-1), mask)

    return Collective(step, None)


@dataclass(frozen=True)
class _Fragment:
    """Where the elements of one operand are: [row, column] -> register, lane, place in the register."""

    registers: int
    per_register: int
    index: Array


def _fragment(rows: int, columns: int, registers: int, place: Callable[[int], tuple[Array, Array]]) -> _Fragment:
    """`place(i)` gives row and column of element i of every lane; elements follow one another in the registers."""
    elements = rows * columns // WARP
    per_register = elements // registers
    index = np.zeros((rows, columns), np.int64)
    for element in range(elements):
        row, column = place(element)
        index[row, column] = (element // per_register * WARP + _LANE) * per_register + element % per_register
    return _Fragment(registers, per_register, index)


@cache
def _layouts(k: int, is_tf32: bool) -> tuple[_Fragment, _Fragment]:
    """A and B of m16n8k`k`."""
    if is_tf32:
        a = _fragment(16, k, k // 2, lambda i: (_ROW_OF_LANE + 8 * (i % 2), _QUARTER + 4 * (i // 2)))
        b = _fragment(k, 8, k // 4, lambda i: (_QUARTER + 4 * i, _ROW_OF_LANE))
        return a, b
    a = _fragment(16, k, k // 4, lambda i: (_ROW_OF_LANE + 8 * (i // 2 % 2), 2 * _QUARTER + i % 2 + 8 * (i // 4)))
    b = _fragment(k, 8, k // 8, lambda i: (2 * _QUARTER + i % 2 + 8 * (i // 2), _ROW_OF_LANE))
    return a, b


def _accumulator(registers: int) -> _Fragment:
    return _fragment(16, 8, registers, lambda i: (_ROW_OF_LANE + 8 * (i // 2), 2 * _QUARTER + i % 2))


# (shape, type of A and B, type of C and D)
_FORMS = {
    ("m16n8k16", "bf16", "f32"),
    ("m16n8k8", "bf16", "f32"),
    ("m16n8k16", "f16", "f32"),
    ("m16n8k8", "f16", "f32"),
    ("m16n8k16", "f16", "f16"),
    ("m16n8k8", "f16", "f16"),
    ("m16n8k8", "tf32", "f32"),
    ("m16n8k4", "tf32", "f32"),
}


@instruction("mma")
def _multiply(context: Context) -> Collective:
    c_type, b_type, a_type, d_type = (context.take_type() for _ in range(4))
    for name in ("sync", "aligned", "row", "col"):
        context.choose(name)
    shape = context.choose("m16n8k4", "m16n8k8", "m16n8k16")
    if (shape, a_type, c_type) not in _FORMS or b_type != a_type or d_type != c_type:
        context.refuse("unknown shape or types")
    k = int(shape.removeprefix("m16n8k"))
    a_layout, b_layout = _layouts(k, a_type == "tf32")
    c_layout = _accumulator(4 if c_type == "f32" else 2)
    d, a, b, c = context.operands(4)

    core = context.core
    warps = core.lanes // WARP
    c_element = np.dtype(np.float32 if c_type == "f32" else np.float16)
    read_a = _reader(context, a, a_layout, a_type, warps)
    read_b = _reader(context, b, b_layout, a_type, warps)
    read_c = _reader(context, c, c_layout, c_type, warps)
    items = context.items(d)
    if len(items) != c_layout.registers:
        context.refuse(f"{len(items)} registers for the result")
    targets = [context.target(item, "f32" if c_type == "f32" else "b32").view(np.uint32) for item in items]
    place = c_layout.index.reshape(-1)

    def step(mask: Mask) -> None:
        result = floats.nearest(read_c() + read_a() @ read_b(), c_type)
        scattered = np.empty((warps, place.size), c_element)
        scattered[:, place] = result.reshape(warps, -1)
        registers = scattered.view(np.uint32).reshape(warps, len(targets), WARP)
        for i, target in enumerate(targets):
            write(target, registers[:, i].reshape(-1), mask)

    return Collective(step, None)


def _reader(context: Context, operand: object, layout: _Fragment, kind: str, warps: int) -> Callable[[], Array]:
    """Gathers a matrix [warp, row, column] in float64 from the registers of its fragment."""
    if not isinstance(operand, Vector) or len(operand.items) != layout.registers:
        context.refuse(f"needs {layout.registers} registers")
    register_type = "f32" if kind == "f32" else "b32"
    sources = [context.source(item, register_type).view(np.uint32) for item in operand.items]
    element = {"bf16": np.uint16, "f16": np.float16, "f32": np.float32, "tf32": np.float32}[kind]
    buffer = np.empty((warps, layout.registers, WARP), np.uint32)
    elements = buffer.reshape(warps, -1).view(element)
    rows = [(buffer[:, i], source.reshape(warps, WARP)) for i, source in enumerate(sources)]
    index = layout.index

    def read() -> Array:
        for row, source in rows:
            np.copyto(row, source)
        if kind == "tf32":
            # Hardware ignores the 13 lowest bits of a tf32 operand.
            np.bitwise_and(buffer, np.uint32(0xFFFF_E000), out=buffer)
        return floats.decode(elements[:, index], kind if kind == "bf16" else "f32")

    return read
