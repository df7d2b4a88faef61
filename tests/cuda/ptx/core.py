"""What instructions work on: the registers of the lanes that run now, and the memories they reach."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from tests.cuda.ptx.memory import LocalSpace, Memory, ParameterSpace, SharedSpace
from tests.cuda.ptx.syntax import Function, Register, Variable
from tests.cuda.ptx.types import Array, size_of

WARP = 32
Saved = list[Array]


class Core:
    """Registers and memories of one kernel. The arrays stay the same objects, so that instructions can hold on to them.

    `lanes` threads run in lock-step: one warp, or all threads of the block. When another cohort takes over, the values
    of its registers are copied in.

    Attributes:
        threads: Index of each lane's thread in its block.
        alive: Lanes whose thread exists and has not exited.
        copies: The cp.async copies of the cohort that runs, set by the machine.
    """

    def __init__(
        self, kernel: Function, reachable: Sequence[Function], lanes: int, module_variables: Iterable[Variable]
    ):
        self.lanes = lanes
        self.functions = {function.name: function for function in reachable}
        self.everyone = np.ones(lanes, np.bool_)
        self.threads = np.zeros(lanes, np.int64)
        self.alive = np.zeros(lanes, np.bool_)
        self.carry = np.zeros(lanes, np.bool_)
        self._allocate_registers(reachable)
        self._allocate_specials()

        in_functions = [variable for function in reachable for variable in function.variables.values()]
        everywhere = [*module_variables, *in_functions]
        self.static_shared = [v for v in everywhere if v.space == "shared" and v.size]
        self.dynamic_shared = [v for v in everywhere if v.space == "shared" and not v.size]
        # What reports call static arrays; the module knows the names of the source.
        self.labels: dict[str, str] = {}
        self.local_variables = [v for v in in_functions if v.space == "local"]
        self.global_variables = [v for v in everywhere if v.space in ("global", "const")]
        self.global_names = {v.name for v in self.global_variables}
        self._global_cells: dict[tuple[str, int], Array] = {}
        self.kernel = kernel
        self.parameters = ParameterSpace(kernel.parameters)
        self.shared = SharedSpace(self.static_shared, self.dynamic_shared, 0, {})
        self.local = LocalSpace(self.local_variables, 0)
        self.memory = Memory()
        self.copies: Any = None

    def _allocate_registers(self, functions: Sequence[Function]) -> None:
        sizes: dict[int, dict[tuple[str, str], int]] = {1: {}, 2: {}, 4: {}, 8: {}}
        flags: dict[tuple[str, str], int] = {}
        for function in functions:
            for register in _registers(function):
                rows = flags if register.type == "pred" else sizes[size_of(register.type)]
                rows.setdefault((function.name, register.name), len(rows))
        self._rows: dict[tuple[str, str], Array] = {}
        self._stores: Saved = []
        for size, rows in sizes.items():
            self._add_rows(rows, np.dtype(f"u{size}"))
        self._add_rows(flags, np.dtype(np.bool_))
        # Parameters of device functions, and the variables that callers fill them from.
        self.buffers: dict[tuple[str, str], Array] = {}
        for function in functions:
            for name, variable in function.variables.items():
                if variable.space == "param":
                    buffer = np.zeros((self.lanes, max(variable.size, 1)), np.uint8)
                    self.buffers[function.name, name] = buffer
                    self._stores.append(buffer)
        self._stores.append(self.carry)

    def _add_rows(self, rows: dict[tuple[str, str], int], dtype: np.dtype[Any]) -> None:
        store = np.zeros((len(rows), self.lanes), dtype)
        self._stores.append(store)
        self._rows.update({key: store[row] for key, row in rows.items()})

    def _allocate_specials(self) -> None:
        lane = np.arange(self.lanes, dtype=np.uint32) % WARP
        bit = np.uint32(1) << lane
        below = bit - np.uint32(1)
        self.specials: dict[str, Array] = {
            "laneid": lane,
            "lanemask_eq": bit,
            "lanemask_lt": below,
            "lanemask_le": below | bit,
            "lanemask_gt": ~(below | bit),
            "lanemask_ge": ~below,
        }
        for axis in "xyz":
            self.specials[f"tid.{axis}"] = np.zeros(self.lanes, np.uint32)
        names = [f"{base}.{axis}" for base in ("ntid", "ctaid", "nctaid") for axis in "xyz"]
        self._cells = {name: np.zeros(1, np.uint32) for name in [*names, "dynamic_smem_size", "total_smem_size"]}
        for name, cell in self._cells.items():
            self.specials[name] = np.broadcast_to(cell, self.lanes)

    def register(self, function: Function, register: Register) -> Array:
        """The values of a register, one for each lane."""
        return self._rows[function.name, register.name]

    def global_address(self, name: str, offset: int) -> Array:
        """The address of a module variable: a cell that `use` fills, as it is known only when the memory is."""
        cell = self._global_cells.setdefault((name, offset), np.zeros(1, np.uint64))
        return np.broadcast_to(cell, self.lanes)

    def use(self, memory: Memory, owner: object) -> None:
        """Runs on this memory from now on; the module's variables are put there."""
        self.memory = memory
        addresses = {v.name: memory.variable(owner, v) for v in self.global_variables}
        for (name, offset), cell in self._global_cells.items():
            cell[0] = addresses[name] + offset

    def set_special(self, base: str, values: Sequence[int]) -> None:
        """Sets a special register that is the same for all threads, such as ("ctaid", (0, 1, 0))."""
        names = [base] if len(values) == 1 else [f"{base}.{axis}" for axis in "xyz"]
        for name, value in zip(names, values, strict=True):
            self._cells[name][0] = value

    def set_threads(self, threads: Array, block: tuple[int, int, int]) -> None:
        """Which threads the lanes are from now on."""
        self.threads[:] = threads
        self.specials["tid.x"][:] = threads % block[0]
        self.specials["tid.y"][:] = threads // block[0] % block[1]
        self.specials["tid.z"][:] = threads // (block[0] * block[1])

    def poison(self) -> None:
        """Registers of new threads: all bits set, so that one that is read before it is written shows as NaN."""
        for store in self._stores:
            if store.dtype == np.bool_:
                store.fill(False)
            else:
                store.view(np.uint8).fill(0xFF)

    def save(self) -> Saved:
        """The values of all registers."""
        return [store.copy() for store in self._stores]

    def restore(self, saved: Saved) -> None:
        """Takes over the values of another cohort."""
        for store, values in zip(self._stores, saved, strict=True):
            np.copyto(store, values)


def _registers(function: Function) -> Iterable[Register]:
    for instruction in function.instructions:
        waiting: list[object] = [instruction.guard, *instruction.operands]
        while waiting:
            operand = waiting.pop()
            if isinstance(operand, Register):
                yield operand
            else:
                for attribute in ("register", "base", "first", "second"):
                    waiting += [getattr(operand, attribute)] if hasattr(operand, attribute) else []
                waiting += getattr(operand, "items", ())
