"""The kernels' workspace without memory: it counts the bytes that a call asks for."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan import _native

# csrc/ops/tensor.h: a block is longer by what aligns it. On CUDA torch's blocks are aligned (csrc/ops/cuda.h).
_ALIGNMENT = 64
# Bytes of a vector by instruction set (csrc/kernels/common/vec.h).
_VECTOR = {"x86-64-v4": 64, "x86-64-v3": 32, "baseline": 16}


@dataclass(frozen=True)
class Machine:
    """What a kernel's scratch depends on beside its arguments: device type, threads, bytes of a SIMD vector (CPU)."""

    device: str = "cpu"
    threads: int = 1
    vector: int = 16

    @classmethod
    def here(cls, device: str = "cpu") -> Machine:
        """This process as it runs now; for "cuda" any GPU."""
        library = _native.host()
        if library.module is None:
            raise _native.MissingBackendError(f"scratch: the native library did not load: {library.reason}")
        return cls(device, torch.get_num_threads(), _VECTOR[library.module.instruction_set()])

    def lanes(self, element: int) -> int:
        """Elements of a vector."""
        return self.vector // element


class Workspace:
    """Counts in `bytes` what is taken and kept until the op returns."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.bytes = 0

    def take(self, count: int) -> None:
        """`count` bytes."""
        self.bytes += count + (_ALIGNMENT if self.machine.device == "cpu" else 0)

    @property
    def on_cuda(self) -> bool:
        return self.machine.device == "cuda"

    @property
    def threads(self) -> int:
        return self.machine.threads


class Steps(Workspace):
    """Steps of one call: what a step took is free again for the next one (csrc/kernels/lora/adapters.h)."""

    def __init__(self, owner: Workspace) -> None:
        super().__init__(owner.machine)
        self.owner = owner
        self.blocks: list[list[int]] = []  # bytes, and 1 while taken

    def next(self) -> Steps:
        """The workspace of one step."""
        for block in self.blocks:
            block[1] = 0
        return self

    def take(self, count: int) -> None:
        """The smallest free block that is large enough, or a new one."""
        free = [block for block in self.blocks if not block[1] and block[0] >= count]
        if free:
            min(free, key=lambda block: block[0])[1] = 1
            return
        self.owner.take(count)
        self.blocks.append([count, 1])


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def round_up(a: int, b: int) -> int:
    return ceil_div(a, b) * b


def statistics(x: Tensor) -> int:
    """Bytes of an element of the type in which x is summed."""
    return 8 if x.dtype == torch.float64 else 4


def narrow(x: Tensor) -> bool:
    """Whether x is stored in fewer bytes than it is summed in."""
    return x.element_size() < statistics(x)


def is_given(x: Tensor | None) -> bool:
    """In lists, no tensor is one of shape [0]."""
    return x is not None and not (x.dim() == 1 and x.shape[0] == 0)
