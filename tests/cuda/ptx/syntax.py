"""The parsed form of PTX: operands, instructions, variables, functions."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Register:
    """A virtual register; `name` is unique within its function (an inner scope adds its number)."""

    name: str
    type: str


@dataclass(frozen=True)
class Immediate:
    """A literal. `float_size` is 0 for an integer, else the bytes of the float whose bits `value` holds."""

    value: int
    float_size: int = 0


@dataclass(frozen=True)
class Symbol:
    """The address of a variable, or the name of a function or label."""

    name: str
    offset: int = 0


@dataclass(frozen=True)
class Special:
    """A special register such as %tid.x, without the percent sign."""

    name: str


@dataclass(frozen=True)
class Address:
    """[base + offset]"""

    base: Register | Symbol | Immediate
    offset: int = 0


@dataclass(frozen=True)
class Vector:
    """{a, b, ...}"""

    items: tuple[Operand, ...]


@dataclass(frozen=True)
class Pair:
    """d|p: two destinations."""

    first: Operand
    second: Operand


@dataclass(frozen=True)
class Sink:
    """`_`: a destination nobody wants."""


@dataclass(frozen=True)
class Negated:
    """!p"""

    register: Register


@dataclass(frozen=True)
class Arguments:
    """The parenthesised lists of a call."""

    items: tuple[Operand, ...]


Operand = Register | Immediate | Symbol | Special | Address | Vector | Pair | Sink | Negated | Arguments


@dataclass(frozen=True)
class Location:
    """A line of the CUDA source; `inlined_at` is where the function it belongs to was inlined."""

    file: int
    line: int
    inlined_at: tuple[int, int] | None = None


@dataclass(frozen=True)
class Instruction:
    """One instruction of a function's body."""

    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]
    guard: Register | Negated | None
    text: str
    line: int
    location: Location | None


@dataclass(frozen=True)
class Variable:
    """A variable of any state space. `size` is 0 for `extern name[]`; `initial` is None without an initialiser."""

    name: str
    space: str
    type: str
    size: int
    align: int
    initial: bytes | None = None
    is_array: bool = False


@dataclass
class Function:
    """A kernel (.entry) or device function (.func)."""

    name: str
    is_kernel: bool
    parameters: list[Variable]
    returns: list[Variable]
    max_threads: tuple[int, int, int] | None = None
    required_threads: tuple[int, int, int] | None = None
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    branch_targets: dict[str, list[str]] = field(default_factory=dict)
    variables: dict[str, Variable] = field(default_factory=dict)
