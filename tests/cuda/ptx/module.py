"""A PTX module and its launches."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tests.cuda.ptx.code import Code, bind_kernel, reachable
from tests.cuda.ptx.core import WARP, Core
from tests.cuda.ptx.errors import KernelError, LaunchError
from tests.cuda.ptx.machine import InstructionFault, Machine
from tests.cuda.ptx.memory import LocalSpace, Memory, SharedSpace
from tests.cuda.ptx.parse import Program, parse
from tests.cuda.ptx.schedule import Block
from tests.cuda.ptx.syntax import Function, Variable
from tests.cuda.ptx.types import FLOAT, SIGNED, Array

Extent = int | tuple[int, ...]
Parameter = int | float | np.integer[Any] | np.floating[Any] | bytes

_MAX_THREADS = 1024
_MAX_GRID = (2**31 - 1, 65535, 65535)
_MAX_BLOCK = (1024, 1024, 64)
# Shared memory that one block may have, in KiB, by architecture.
_SHARED_KIB = {"70": 96, "75": 64, "80": 163, "86": 99, "87": 163, "89": 99, "90": 227, "100": 227, "103": 227}
_SHARED_KIB |= {"110": 227, "120": 99, "121": 99}


@dataclass(frozen=True)
class Kernel:
    """A kernel of a module: its name in the PTX, and as C++ shows it."""

    name: str
    demangled: str
    parameters: tuple[Variable, ...]


@dataclass
class Run:
    """What a launch did.

    Attributes:
        instructions: Instructions executed, each counted once for all lanes that executed it together.
        executed: For each instruction of the code whether any thread came to it.
        unexecuted: "file:line" (or "PTX line n") of the places where no thread came, in order.
    """

    instructions: int
    executed: Array
    unexecuted: list[str]


class Module:
    """The kernels of one PTX text.

    Args:
        ptx: The text, as nvcc -ptx writes it.
    """

    def __init__(self, ptx: str) -> None:
        self.program: Program = parse(ptx)
        self._bound: dict[tuple[str, int], tuple[Core, Code]] = {}

    @cached_property
    def kernels(self) -> list[Kernel]:
        """All kernels."""
        functions = [function for function in self.program.functions.values() if function.is_kernel]
        shown = _demangle([function.name for function in functions])
        return [Kernel(f.name, name, tuple(f.parameters)) for f, name in zip(functions, shown, strict=True)]

    def kernel(self, name: str) -> Kernel:
        """The kernel of this mangled name, or the one whose C++ name starts so: "scale" or "scale<float, 2>"."""
        for kernel in self.kernels:
            if kernel.name == name:
                return kernel
        found = [kernel for kernel in self.kernels if _is_called(kernel.demangled, name)]
        if len(found) != 1:
            which = "no kernel" if not found else f"{len(found)} kernels"
            raise LaunchError(f"{which} named {name!r} among {[kernel.demangled for kernel in self.kernels]}")
        return found[0]

    def run(
        self,
        kernel: str,
        grid: Extent,
        block: Extent,
        smem_bytes: int,
        parameters: Sequence[Parameter],
        memory: Memory,
        seed: int | None = None,
        limit: int = 20_000_000,
    ) -> Run:
        """Runs a kernel.

        Args:
            kernel: Its name, see :meth:`kernel`.
            grid: Number of blocks, up to three extents.
            block: Number of threads in a block, up to three extents.
            smem_bytes: Dynamic shared memory.
            parameters: A number for a scalar or a pointer, bytes for a struct (those of a ctypes.Structure, say).
            memory: Global memory; buffers keep what the kernel wrote.
            seed: None runs all threads of a block in lock-step and blocks in order; a number runs warps and blocks in
                an order that it chooses.
            limit: Instructions after which the kernel counts as endless.

        Raises:
            KernelError: The kernel broke a rule.
            UnsupportedPtx: An instruction that the engine does not know.
            LaunchError: The launch is wrong.
        """
        found = self.kernel(kernel)
        function = self.program.function(found.name)
        grid3, block3 = _extent(grid, _MAX_GRID, "grid"), _extent(block, _MAX_BLOCK, "block")
        threads = _check_block(function, block3)
        lanes = (threads + WARP - 1) // WARP * WARP if seed is None else WARP
        core, code = self._bind(function, lanes)
        self._check_shared(core, smem_bytes)
        core.use(memory, self.program)
        core.parameters.set(_pack(function, parameters))
        core.shared = SharedSpace(core.static_shared, core.dynamic_shared, smem_bytes, core.labels)
        core.local = LocalSpace(core.local_variables, (threads + WARP - 1) // WARP * WARP)
        core.set_special("ntid", block3)
        core.set_special("nctaid", grid3)
        core.set_special("dynamic_smem_size", [smem_bytes])
        core.set_special("total_smem_size", [smem_bytes + sum(v.size for v in core.static_shared)])
        machine = Machine(core, code, limit)
        random = None if seed is None else np.random.default_rng(seed)
        indices = list(np.ndindex(grid3[2], grid3[1], grid3[0]))
        if random is not None:
            random.shuffle(indices)
        with np.errstate(all="ignore"):
            for z, y, x in indices:
                self._run_block(machine, found, (x, y, z), block3, random)
        return Run(machine.count, machine.executed, self._unexecuted(code, machine.executed))

    def _run_block(
        self,
        machine: Machine,
        kernel: Kernel,
        index: tuple[int, int, int],
        extent: tuple[int, int, int],
        random: np.random.Generator | None,
    ) -> None:
        core = machine.core
        core.set_special("ctaid", index)
        core.shared.reset()
        core.local.reset()
        try:
            Block(machine, extent, random).run()
        except InstructionFault as caught:
            fault, instruction = caught.fault, machine.code.instructions[caught.pc]
            thread = None
            if fault.lane is not None:
                number = int(core.threads[fault.lane])
                thread = (number % extent[0], number // extent[0] % extent[1], number // (extent[0] * extent[1]))
            where = self.program.where(instruction.location)
            raise KernelError(
                fault.rule, fault.message, kernel.demangled, index, thread, instruction.text, instruction.line, where
            ) from None

    def _bind(self, function: Function, lanes: int) -> tuple[Core, Code]:
        key = function.name, lanes
        if key not in self._bound:
            core = Core(function, reachable(self.program, function), lanes, self.program.variables.values())
            names = [variable.name for variable in core.static_shared]
            core.labels = {name: shown.split("::")[-1] for name, shown in zip(names, _demangle(names), strict=True)}
            self._bound[key] = core, bind_kernel(self.program, core)
        return self._bound[key]

    def _check_shared(self, core: Core, dynamic: int) -> None:
        number = re.sub(r"\D", "", self.program.target)
        if number not in _SHARED_KIB:
            raise LaunchError(f"target {self.program.target!r}: its shared memory is not known")
        needed = dynamic + sum(variable.size for variable in core.static_shared)
        allowed = _SHARED_KIB[number] * 1024
        if dynamic < 0 or needed > allowed:
            raise LaunchError(f"{needed} bytes of shared memory; {self.program.target} allows {allowed}")

    def _unexecuted(self, code: Code, executed: Array) -> list[str]:
        found: dict[str, None] = {}
        for instruction, was in zip(code.instructions, executed.tolist(), strict=True):
            if not was:
                found[self.program.where(instruction.location) or f"PTX line {instruction.line}"] = None
        return list(found)


def _extent(extent: Extent, limits: tuple[int, int, int], name: str) -> tuple[int, int, int]:
    sizes = (extent,) if isinstance(extent, int) else tuple(extent)
    x, y, z = (*sizes, 1, 1, 1)[:3]
    if len(sizes) > 3 or any(not 1 <= size <= limit for size, limit in zip((x, y, z), limits, strict=True)):
        raise LaunchError(f"{name} {sizes}: each extent must be at least 1 and at most {limits}")
    return x, y, z


def _check_block(function: Function, block: tuple[int, int, int]) -> int:
    threads = block[0] * block[1] * block[2]
    if threads > _MAX_THREADS:
        raise LaunchError(f"block {block} has {threads} threads; at most {_MAX_THREADS} are allowed")
    bound = function.max_threads
    if bound is not None and threads > bound[0] * bound[1] * bound[2]:
        raise LaunchError(f"block {block} has {threads} threads; the kernel's launch bounds allow {bound}")
    if function.required_threads not in (None, block):
        raise LaunchError(f"block {block}; the kernel requires {function.required_threads}")
    return threads


def _pack(function: Function, values: Sequence[Parameter]) -> list[bytes]:
    if len(values) != len(function.parameters):
        raise LaunchError(f"{len(values)} parameters given, the kernel has {len(function.parameters)}")
    return [_pack_one(p, value) for p, value in zip(function.parameters, values, strict=True)]


def _pack_one(parameter: Variable, value: Parameter) -> bytes:
    if isinstance(value, bytes):
        if len(value) != parameter.size:
            raise LaunchError(f"{parameter.name}: {len(value)} bytes given, it has {parameter.size}")
        return value
    if parameter.is_array:
        raise LaunchError(f"{parameter.name} is a struct of {parameter.size} bytes; give it as bytes")
    if parameter.type in FLOAT:
        return struct.pack("<f" if parameter.size == 4 else "<d", float(value))
    number = int(value)
    if number != value:
        raise LaunchError(f"{parameter.name} is .{parameter.type}, given {value!r}")
    bits = 8 * parameter.size
    low, high = -(1 << (bits - 1)), (1 << bits - 1) if parameter.type in SIGNED else 1 << bits
    if not low <= number < high:
        raise LaunchError(f"{parameter.name} is .{parameter.type}; {number} does not fit")
    return (number & ((1 << bits) - 1)).to_bytes(parameter.size, "little")


def _is_called(demangled: str, name: str) -> bool:
    """Whether C++'s name of a kernel is `name`, with or without template arguments and parameters."""
    return re.search(rf"(?:^|[\s:]){re.escape(name)}(?![\w])(?=[<(\s]|$)", demangled) is not None


def _demangle(names: list[str]) -> list[str]:
    """C++ names through c++filt; the mangled ones where there is none."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    shown = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout.splitlines()
    return shown if len(shown) == len(names) else names
