"""Runs what the source engine launched a second time, on the PTX that nvcc makes of the same kernels.

result = simt.run("attention_fwd", arguments, record=True)
values = replay(result, sources)["out"]
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from bench.static.compile import compile_source
from bench.static.kernels import without_parameters
from bench.static.tools import KERNELS
from tests.cuda import simt
from tests.cuda.ptx import Memory, Module

_POINTER = struct.Struct("<Q")


@functools.cache
def module(source: str) -> Module:
    """The PTX of a kernel source below csrc/kernels, from the same compilation as the figures of its machine code."""
    return Module(compile_source(KERNELS / source).ptx.read_text(encoding="utf-8"))


@dataclass
class Replay:
    """What the PTX wrote, and how many elements of each output it never wrote."""

    outputs: dict[str, np.ndarray] = field(default_factory=dict)
    unwritten: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.outputs[name]


def replay(result: simt.Result, sources: Sequence[str], seed: int | None = None) -> Replay:
    """Runs all launches of a recorded run on fresh memory.

    Args:
        result: Of `simt.run(..., record=True)`.
        sources: Where the kernels are, below csrc/kernels.
        seed: None runs each block's threads in lock-step, a number in an order that it chooses.

    Raises:
        KernelError: A kernel broke a rule of the PTX engine.
        LookupError: A launched kernel is in none of the sources.
    """
    record = result.recording
    assert record is not None, "the run was not recorded"
    memory, places, names = Memory(), [], {}
    for number, array in enumerate(record.arrays):
        name = f"{array.name} #{number}"
        if array.contents:
            address = memory.upload(name, np.frombuffer(array.contents, np.uint8))
        else:
            address = memory.output(name, array.size, np.uint8)
        places.append((array.address, array.size, address))
        names[array.address] = name
    for step in record.steps:
        if isinstance(step, simt.Product):
            _multiply(step, memory, places)
            continue
        kernel_module, kernel = _find(step.kernel, sources)
        parameters: list[int | float | bytes] = [_moved(each, places) for each in step.parameters]
        kernel_module.run(kernel, step.grid, step.block, step.smem_bytes, parameters, memory, seed)
    done = Replay()
    for name, array_address in record.outputs.items():
        like, where = result.outputs[name], names[array_address]
        done.outputs[name] = memory.download(where).view(like.dtype).reshape(like.shape)
        bytes_unwritten = memory.unwritten(where).reshape(-1, like.dtype.itemsize)
        done.unwritten[name] = int(bytes_unwritten.any(1).sum())
    return done


def _find(kernel: str, sources: Sequence[str]) -> tuple[Module, str]:
    wanted = _plain(kernel)
    for source in sources:
        for each in module(source).kernels:
            if _plain(each.demangled) == wanted:
                return module(source), each.name
    raise LookupError(f"{kernel} is in none of {', '.join(sources)}")


def _plain(name: str) -> str:
    return without_parameters(name).replace(" ", "")


def _multiply(product: simt.Product, memory: Memory, places: Sequence[tuple[int, int, int]]) -> None:
    """The matrix library's part, in double, on what the PTX wrote; bytes that nothing wrote are an error here too."""

    def addresses(start: int, rows: int, columns: int, stride: int, dtype: str) -> np.ndarray:
        (moved,) = _POINTER.unpack(_moved(_POINTER.pack(start), places))
        return moved + (np.arange(rows)[:, None] * stride + np.arange(columns)) * np.dtype(dtype).itemsize

    def matrix(start: int, shape: tuple[int, int], stride: int, dtype: str, transposed: bool) -> np.ndarray:
        rows, columns = reversed(shape) if transposed else shape
        words = memory.load(addresses(start, rows, columns, stride, dtype), np.dtype(dtype).itemsize)
        # bfloat16 travels as the upper half of a float32
        values = (words.astype(np.uint32) << 16).view(np.float32) if dtype == "uint16" else words.view(dtype)
        return (values.T if transposed else values).astype(np.float64)

    p = product
    a = matrix(p.a, (p.m, p.k), p.lda, p.dtype_a, p.transpose_a)
    b = matrix(p.b, (p.k, p.n), p.ldb, p.dtype_b, p.transpose_b)
    c = a @ b + (p.beta * matrix(p.c, (p.m, p.n), p.ldc, p.dtype_c, False) if p.beta else 0)
    if p.dtype_c == "uint16":
        words = torch.from_numpy(c).float().bfloat16().view(torch.int16).numpy().view(np.uint16)
    else:
        words = c.astype(p.dtype_c)
    unsigned = words.view(f"u{words.itemsize}")
    memory.store(addresses(p.c, p.m, p.n, p.ldc, p.dtype_c), unsigned, words.itemsize)


def _moved(parameter: bytes, places: Sequence[tuple[int, int, int]]) -> bytes:
    """The parameter with each pointer into an array of the recorded run pointing into its copy.

    A word is a pointer when it is an address of one of those arrays: no count, stride or scale is as large as those.
    """
    moved = bytearray(parameter)
    for at in range(0, len(moved) - len(moved) % 8, 8):
        (word,) = _POINTER.unpack_from(moved, at)
        for begin, size, copy in places:
            if begin <= word < begin + max(size, 1):
                _POINTER.pack_into(moved, at, copy + word - begin)
    return bytes(moved)
