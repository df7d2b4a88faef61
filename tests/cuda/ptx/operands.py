"""Reads one operand, and the names that are in scope where it stands."""

from __future__ import annotations

import re
import struct

from tests.cuda.ptx.errors import ParseError
from tests.cuda.ptx.scan import split_operands
from tests.cuda.ptx.syntax import (
    Address,
    Arguments,
    Immediate,
    Negated,
    Operand,
    Pair,
    Register,
    Sink,
    Special,
    Symbol,
    Vector,
)
from tests.cuda.ptx.types import DTYPES

_INTEGER = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|0[bB][01]+|\d+)U?$")
_FLOAT_BITS = re.compile(r"0([fF])([0-9a-fA-F]{8})$|0([dD])([0-9a-fA-F]{16})$")
_DECIMAL = re.compile(r"[+-]?(\d+\.\d*|\.\d+)([eE][+-]?\d+)?$")
_SPECIAL = re.compile(r"%[a-z]\w*(\.[xyzw])?$")
_NAME = re.compile(r"[A-Za-z_$%][\w$.]*$")
_RANGE = re.compile(r"(%?[A-Za-z_$][\w$]*)<(\d+)>$|(%?[A-Za-z_$][\w$]*)$")
_NUMBERED = re.compile(r"(.*?)(\d+)$")


def parse_integer(text: str) -> int | None:
    """The value of an integer literal, None when it is none."""
    match = _INTEGER.match(text)
    if match is None:
        return None
    digits, sign = match[1], -1 if text[0] == "-" else 1
    if len(digits) > 1 and digits[0] == "0" and digits.isdigit():
        return sign * int(digits, 8)
    return sign * int(digits, 0)


class Scope:
    """The registers and variables that one pair of braces declares, and the scopes around it."""

    def __init__(self, parent: Scope | None = None, number: int = 0) -> None:
        self.parent = parent
        self.suffix = f"#{number}" if number else ""
        self.registers: dict[str, Register] = {}
        self.ranges: dict[str, tuple[int, str]] = {}
        self.variables: dict[str, str] = {}

    def declare_registers(self, type_name: str, names: str) -> None:
        """Takes the list of a .reg directive: `%r<10>, low, high`."""
        if type_name not in DTYPES or type_name in ("tf32", "bf16x2"):
            raise ParseError(f".reg .{type_name}: unknown type")
        for name in split_operands(names):
            match = _RANGE.match(name)
            if match is None:
                raise ParseError(f".reg: cannot read {name!r}")
            if match[1]:
                self.ranges[match[1]] = (int(match[2]), type_name)
            else:
                self.registers[name] = Register(name + self.suffix, type_name)

    def register(self, name: str) -> Register | None:
        """The register of this name here or in a scope around."""
        if name in self.registers:
            return self.registers[name]
        numbered = _NUMBERED.match(name)
        if numbered and numbered[1] in self.ranges:
            count, type_name = self.ranges[numbered[1]]
            if int(numbered[2]) < count:
                self.registers[name] = Register(name + self.suffix, type_name)
                return self.registers[name]
        return self.parent.register(name) if self.parent else None

    def variable(self, name: str) -> str | None:
        """The unique name of a variable that this scope or one around declares."""
        if name in self.variables:
            return self.variables[name]
        return self.parent.variable(name) if self.parent else None


def parse_operand(text: str, scope: Scope) -> Operand:
    """Reads one operand. Names of neither registers nor variables become symbols: labels and functions."""
    first = text[0]
    if first == "{":
        return Vector(tuple(parse_operand(part, scope) for part in split_operands(text[1:-1])))
    if first == "(":
        return Arguments(tuple(parse_operand(part, scope) for part in split_operands(text[1:-1])))
    if first == "[":
        return _parse_address(text[1:-1].strip(), scope)
    if "|" in text:
        left, right = text.split("|")
        return Pair(parse_operand(left.strip(), scope), parse_operand(right.strip(), scope))
    if first == "!":
        register = scope.register(text[1:].strip())
        if register is None:
            raise ParseError(f"{text}: no such register")
        return Negated(register)
    if text == "_":
        return Sink()
    return _parse_simple(text, scope)


def _parse_simple(text: str, scope: Scope) -> Register | Immediate | Symbol | Special:
    register = scope.register(text)
    if register is not None:
        return register
    integer = parse_integer(text)
    if integer is not None:
        return Immediate(integer)
    if match := _FLOAT_BITS.match(text):
        return Immediate(int(match[2], 16), 4) if match[1] else Immediate(int(match[4], 16), 8)
    if _DECIMAL.match(text):
        return Immediate(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 8)
    if text == "WARP_SZ":
        return Immediate(32)
    if _SPECIAL.match(text):
        return Special(text[1:])
    base, plus, offset = (part.strip() for part in text.partition("+"))
    number = parse_integer(offset) if plus else 0
    if not _NAME.match(base) or number is None:
        raise ParseError(f"cannot read the operand {text!r}")
    return Symbol(scope.variable(base) or base, number)


def _parse_address(text: str, scope: Scope) -> Address:
    base, plus, rest = (part.strip() for part in text.partition("+"))
    offset = parse_integer(rest) if plus else 0
    if offset is None:
        raise ParseError(f"cannot read the address [{text}]")
    operand = _parse_simple(base, scope)
    if isinstance(operand, Special) or (isinstance(operand, Immediate) and operand.float_size):
        raise ParseError(f"cannot read the address [{text}]")
    return Address(operand, offset)
