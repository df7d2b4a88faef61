"""Binds one instruction to the arrays it works on, and refuses whatever part of it nobody has taken.

A bound instruction is a step: a function of the lanes that act. Operands are resolved once, to arrays that stay the
same objects for the whole run, so a step is little more than one numpy call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NoReturn, TypeVar

import numpy as np

from tests.cuda.ptx.core import Core
from tests.cuda.ptx.errors import UnsupportedPtx
from tests.cuda.ptx.syntax import (
    Function,
    Immediate,
    Instruction,
    Location,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from tests.cuda.ptx.types import (
    BITS,
    BITS_OF_SIZE,
    DTYPES,
    HALF,
    SIGNED,
    SIGNED_OF_SIZE,
    Array,
    Mask,
    size_of,
)

Step = Callable[[Mask], None]
# What names the source line of an instruction.
Where = Callable[[Location | None], str | None]
Binder = TypeVar("Binder", bound=Callable[..., object])

_BINDERS: dict[str, list[tuple[frozenset[str] | None, Callable[[Context], object]]]] = {}


def instruction(*opcodes: str, types: frozenset[str] | None = None) -> Callable[[Binder], Binder]:
    """Registers what binds an opcode, for all types or for those that its last modifier may be."""

    def register(binder: Binder) -> Binder:
        for opcode in opcodes:
            _BINDERS.setdefault(opcode, []).append((types, binder))
        return binder

    return register


def bind(context: Context) -> object:
    """The step (or control operation) of an instruction; every modifier of it must have been understood."""
    last = context.instruction.modifiers[-1] if context.instruction.modifiers else ""
    for types, binder in _BINDERS.get(context.instruction.opcode, ()):
        if types is None or last in types:
            bound = binder(context)
            if context.modifiers:
                context.refuse(f"unknown modifier .{context.modifiers[0]}")
            return bound
    context.refuse("unknown instruction")


class Context:
    """One instruction that is being bound."""

    def __init__(self, core: Core, function: Function, instruction: Instruction, where: Where) -> None:
        self.core = core
        self.function = function
        self.instruction = instruction
        self.modifiers = list(instruction.modifiers)
        self._where = where

    def refuse(self, reason: str) -> NoReturn:
        """Raises the error that names the instruction."""
        place = self._where(self.instruction.location)
        source = f" ({place})" if place else ""
        raise UnsupportedPtx(f"PTX line {self.instruction.line}{source}: {self.instruction.text}: {reason}")

    # Modifiers: each is taken once; those left over are an error.

    def take_type(self) -> str:
        """The type at the end of the modifiers."""
        if not self.modifiers or self.modifiers[-1] not in DTYPES:
            self.refuse("no type")
        return self.modifiers.pop()

    def flag(self, name: str) -> bool:
        """Whether the modifier is there."""
        if name in self.modifiers:
            self.modifiers.remove(name)
            return True
        return False

    def choose(self, *names: str, default: str | None = None) -> str:
        """The one of the modifiers that is there."""
        for name in names:
            if self.flag(name):
                return name
        if default is None:
            self.refuse(f"needs one of .{', .'.join(names)}")
        return default

    # Operands.

    def operands(self, *counts: int) -> tuple[Operand, ...]:
        """The operands, of which there must be one of these numbers."""
        found = self.instruction.operands
        if len(found) not in counts:
            self.refuse(f"{len(found)} operands; the engine knows the form with {' or '.join(map(str, counts))}")
        return found

    def source(self, operand: Operand, type_name: str, wide: bool = False) -> Array:
        """The values of a source operand, one for each lane. `wide` allows a register wider than the type."""
        dtype = DTYPES[type_name]
        if isinstance(operand, Register):
            row = self._row(operand, type_name)
            if row.itemsize == dtype.itemsize:
                return row.view(dtype)
            if wide and row.itemsize > dtype.itemsize:
                return row.view(dtype)[:: row.itemsize // dtype.itemsize]
            self.refuse(f"{operand.name} is .{operand.type}, the instruction is .{type_name}")
        if isinstance(operand, Immediate):
            return self._immediate(operand, type_name)
        if isinstance(operand, Special):
            special = self.core.specials.get(operand.name)
            if special is None:
                self.refuse(f"%{operand.name}: no such register, or a special register that the engine does not model")
            if dtype.itemsize != 4:
                self.refuse(f"%{operand.name} has 32 bits")
            return special.view(dtype)
        if isinstance(operand, Symbol):
            return self._symbol(operand, type_name)
        self.refuse(f"{operand}: not a value")

    def target(self, operand: Operand, type_name: str, wide: bool = False) -> Array:
        """Where a result goes. Into a wider register (`wide`) it goes extended by its sign or by zeros."""
        dtype = DTYPES[type_name]
        if isinstance(operand, Sink):
            return np.zeros(self.core.lanes, dtype)
        if not isinstance(operand, Register):
            self.refuse(f"{operand}: not a register")
        row = self._row(operand, type_name)
        if row.itemsize == dtype.itemsize:
            return row.view(dtype)
        if wide and row.itemsize > dtype.itemsize and dtype.kind in "iu":
            return row.view((SIGNED_OF_SIZE if type_name in SIGNED else BITS_OF_SIZE)[row.itemsize])
        self.refuse(f"{operand.name} is .{operand.type}, the instruction is .{type_name}")

    def _row(self, register: Register, type_name: str) -> Array:
        if (register.type == "pred") != (type_name == "pred"):
            self.refuse(f"{register.name} is .{register.type}, the instruction is .{type_name}")
        return self.core.register(self.function, register)

    def pair(self, operand: Operand) -> tuple[Operand, Operand | None]:
        """d|p or d alone."""
        return (operand.first, operand.second) if isinstance(operand, Pair) else (operand, None)

    def items(self, operand: Operand) -> tuple[Operand, ...]:
        """The elements of a vector operand; a single one stands for itself."""
        return operand.items if isinstance(operand, Vector) else (operand,)

    def predicate(self, operand: Operand) -> Callable[[], Array]:
        """Reads a predicate that may be negated."""
        if isinstance(operand, Negated):
            row = self.source(operand.register, "pred")
            return lambda: ~row
        row = self.source(operand, "pred")
        return lambda: row

    def constant(self, operand: Operand) -> int:
        """The value of an operand that must be an integer literal."""
        if not isinstance(operand, Immediate) or operand.float_size:
            self.refuse(f"{operand}: must be a literal")
        return operand.value

    def _immediate(self, operand: Immediate, type_name: str) -> Array:
        dtype = DTYPES[type_name]
        value = operand.value
        if type_name == "pred":
            return np.full(self.core.lanes, value != 0)
        if type_name in ("f32", "f64"):
            if not operand.float_size:
                self.refuse(f"integer literal {value} for .{type_name}")
            if type_name == "f32" and operand.float_size == 8:
                double = struct.unpack("<d", struct.pack("<Q", value))[0]
                return np.full(self.core.lanes, np.float32(double))
            if type_name == "f64" and operand.float_size == 4:
                self.refuse("a 32-bit literal for .f64")
        elif type_name in HALF:
            self.refuse(f"a literal for .{type_name}")
        elif operand.float_size and (operand.float_size != dtype.itemsize or type_name not in BITS):
            self.refuse(f"{8 * operand.float_size}-bit floating-point literal for .{type_name}")
        bits = 8 * dtype.itemsize
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            self.refuse(f"literal {value} does not fit .{type_name}")
        return np.full(self.core.lanes, value & ((1 << bits) - 1), BITS_OF_SIZE[dtype.itemsize]).view(dtype)

    def _symbol(self, operand: Symbol, type_name: str) -> Array:
        core, size = self.core, size_of(type_name)
        if size < 4:
            self.refuse(f"the address of {operand.name} as .{type_name}")
        for space in (core.shared, core.local, core.parameters):
            if operand.name in space.addresses:
                address = space.addresses[operand.name] + operand.offset
                return np.full(core.lanes, address, BITS_OF_SIZE[size]).view(DTYPES[type_name])
        if operand.name in core.global_names:
            if size != 8:
                self.refuse(f"the address of {operand.name} has 64 bits")
            return core.global_address(operand.name, operand.offset).view(DTYPES[type_name])
        self.refuse(f"{operand.name}: no variable of this name; addresses of functions are not modelled")


def write(target: Array, values: Array, mask: Mask) -> None:
    """Writes the lanes that act, converting the width only (sign or zero extension)."""
    if mask is True:
        target[...] = values
    else:
        np.copyto(target, values, where=mask, casting="unsafe")
