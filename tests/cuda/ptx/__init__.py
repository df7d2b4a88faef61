"""Runs the PTX that nvcc emits on the CPU, vectorised over the threads of a block with numpy.

It sees what an emulation of the source cannot: the strings of inline assembly and nvcc's own code generation. Whatever
it does not know is an error.

Example:
    >>> module = Module(compile_ptx(Path("scale.cu")))
    >>> memory = Memory()
    >>> x = memory.upload("x", np.arange(100, dtype=np.float32))
    >>> y = memory.output("y", 100, np.float32)
    >>> module.run("scale", 1, 128, 0, [x, y, 2.0, 100], memory, seed=1)
    >>> memory.download("y")
"""

from __future__ import annotations

from tests.cuda.ptx.errors import KernelError, LaunchError, ParseError, PtxError, UnsupportedPtx
from tests.cuda.ptx.memory import Memory
from tests.cuda.ptx.module import Kernel, Module, Run
from tests.cuda.ptx.source import compile_ptx

__all__ = [
    "Kernel",
    "KernelError",
    "LaunchError",
    "Memory",
    "Module",
    "ParseError",
    "PtxError",
    "Run",
    "UnsupportedPtx",
    "compile_ptx",
]
