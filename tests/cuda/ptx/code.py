"""All instructions that a kernel may reach, bound and laid out at program counters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.cuda.ptx import instructions
from tests.cuda.ptx.context import Context, Step, bind
from tests.cuda.ptx.core import Core
from tests.cuda.ptx.errors import LaunchError, UnsupportedPtx
from tests.cuda.ptx.operations import Branch, Call, IndexedBranch, Operation
from tests.cuda.ptx.parse import Program
from tests.cuda.ptx.syntax import Arguments, Function, Instruction, Negated, Symbol
from tests.cuda.ptx.types import Array, Mask

# Importing the groups has registered the instructions.
assert instructions.__all__


@dataclass
class Guard:
    """The predicate in front of an instruction."""

    values: Array
    negated: bool

    def holds(self, mask: Mask) -> Array:
        """The acting lanes for which it holds; a new array."""
        wanted = ~self.values if self.negated else self.values.copy()
        return wanted if mask is True else wanted & mask


@dataclass
class Code:
    """The bound instructions.

    Attributes:
        program: Where they come from.
        steps: What to do at each program counter; None where the machine itself acts.
        operations: The machine's own operations by program counter.
        guards: Predicates of those operations.
        run_end: For each program counter the next one at which the machine acts.
        instructions: The text.
        functions: The function each belongs to.
        entries: First program counter of each function.
        labels: Program counters of the labels, by function.
    """

    program: Program
    steps: list[Step]
    operations: dict[int, Operation]
    guards: dict[int, Guard]
    run_end: list[int]
    instructions: list[Instruction]
    functions: list[Function]
    entries: dict[str, int]
    labels: dict[tuple[str, str], int]

    def target(self, pc: int, label: str) -> int:
        """Where a jump from `pc` goes."""
        return self.labels[self.functions[pc].name, label]


def reachable(program: Program, kernel: Function) -> list[Function]:
    """The kernel and all functions that it calls, directly or not; a function that calls itself is not supported."""
    order: list[Function] = []

    def visit(function: Function, path: tuple[str, ...]) -> None:
        if function.name in path:
            raise UnsupportedPtx(f"{function.name} calls itself; recursion is not modelled")
        if function in order:
            return
        order.append(function)
        for name in _callees(function):
            if name in program.functions:
                visit(program.function(name), (*path, function.name))

    visit(kernel, ())
    return order


def _callees(function: Function) -> list[str]:
    found = []
    for instruction in function.instructions:
        if instruction.opcode == "call":
            names = [o.name for o in instruction.operands if not isinstance(o, Arguments) and isinstance(o, Symbol)]
            found += names[:1]
    return found


def bind_kernel(program: Program, core: Core) -> Code:
    """Binds every instruction; any form that is not known is an error, executed or not."""
    code = Code(program, [], {}, {}, [], [], [], {}, {})
    for function in core.functions.values():
        start = len(code.instructions)
        code.entries[function.name] = start
        code.labels.update({(function.name, label): start + at for label, at in function.labels.items()})
        for instruction in function.instructions:
            _bind_one(program, core, code, function, instruction)
        # Falling off the end of a function would run into the next one.
        if not function.instructions or function.instructions[-1].opcode not in ("ret", "exit", "trap", "bra"):
            raise LaunchError(f"{function.name} has no ret at its end")
    _check_targets(code)
    end = len(code.instructions)
    code.run_end = [end] * end
    for pc in reversed(range(end)):
        if pc in code.operations:
            end = pc
        code.run_end[pc] = end
    return code


def _bind_one(program: Program, core: Core, code: Code, function: Function, instruction: Instruction) -> None:
    pc = len(code.instructions)
    context = Context(core, function, instruction, program.where)
    bound = bind(context)
    guard = None
    if instruction.guard is not None:
        negated = isinstance(instruction.guard, Negated)
        register = instruction.guard.register if isinstance(instruction.guard, Negated) else instruction.guard
        guard = Guard(core.register(function, register), negated)
    if isinstance(bound, Operation):
        code.operations[pc] = bound
        if guard is not None:
            code.guards[pc] = guard
        code.steps.append(_unreachable)
    else:
        assert callable(bound)
        code.steps.append(bound if guard is None else _guarded(bound, guard))
    code.instructions.append(instruction)
    code.functions.append(function)


def _guarded(step: Step, guard: Guard) -> Step:
    def guarded(mask: Mask) -> None:
        acting = guard.holds(mask)
        if np.count_nonzero(acting):
            step(acting)

    return guarded


def _unreachable(mask: Mask) -> None:
    raise AssertionError("the machine carries out this instruction itself")


def _check_targets(code: Code) -> None:
    for pc, operation in code.operations.items():
        labels = [operation.label] if isinstance(operation, Branch) else []
        labels += operation.labels if isinstance(operation, IndexedBranch) else []
        for label in labels:
            if code.target(pc, label) >= len(code.instructions):
                raise LaunchError(f"label {label} stands behind the last instruction")
        if isinstance(operation, Call) and operation.function not in code.entries:
            raise LaunchError(f"{operation.function} is not laid out")
