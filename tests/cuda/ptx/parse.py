"""Parses the PTX that nvcc emits into functions, variables and the line table."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from tests.cuda.ptx.errors import ParseError
from tests.cuda.ptx.operands import Scope, parse_integer, parse_operand
from tests.cuda.ptx.scan import Piece, Scanner, split_operands, without_comments
from tests.cuda.ptx.syntax import Function, Instruction, Location, Negated, Register, Variable
from tests.cuda.ptx.types import DTYPES, size_of

_VARIABLE = re.compile(
    r"^(?:\.(?P<linkage>extern|visible|weak|common)\s+)?\.(?P<space>shared|global|const|local|param)\s*"
    r"(?:\.attribute\([^)]*\)\s*)?(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr[^,]*?\s)?(?P<name>[\w$%]+)(?P<dims>(?:\[\d*\])*)\s*(?:=\s*(?P<initial>.*))?$",
    re.DOTALL,
)
_FUNCTION = re.compile(
    r"^(?:\.(?:visible|weak|extern)\s+)*\.(?P<kind>entry|func)\s*(?P<rest>.*)$",
    re.DOTALL,
)
_LOC = re.compile(r"\.loc\s+(\d+)\s+(\d+)\s+\d+(?:,\s*function_name\s+\S+,\s*inlined_at\s+(\d+)\s+(\d+)\s+\d+)?$")
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"')
_GUARD = re.compile(r"@(!?)([%\w$]+)\s+")
_BOUND = re.compile(r"\.(maxntid|reqntid)\s+(\d+)(?:\s*,\s*(\d+))?(?:\s*,\s*(\d+))?")
# Performance hints between a kernel's header and its body.
_HINTS = re.compile(r"\.(maxntid|reqntid|minnctapersm|maxnreg|noreturn|pragma|unified)\b")


@dataclass
class Program:
    """One PTX file.

    Attributes:
        target: The architecture, such as "sm_80".
        functions: By mangled name, kernels and device functions; the bodies are read by `function`.
        externals: Functions that are declared and not defined.
        variables: Module-scope variables by name.
        files: Paths of the line table by number.
    """

    target: str = ""
    functions: dict[str, Function] = field(default_factory=dict)
    externals: set[str] = field(default_factory=set)
    variables: dict[str, Variable] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    _unread: dict[str, Callable[[], None]] = field(default_factory=dict)

    def function(self, name: str) -> Function:
        """The function with its body, which is read when it is first asked for: one file may hold a hundred kernels."""
        read = self._unread.pop(name, None)
        if read is not None:
            read()
        return self.functions[name]

    def where(self, location: Location | None) -> str | None:
        """ "file:line" of a location, with the place it was inlined at."""
        if location is None or location.line == 0:
            return None
        text = f"{self.files.get(location.file, '?')}:{location.line}"
        if location.inlined_at is not None:
            text += f" (inlined at {self.files.get(location.inlined_at[0], '?')}:{location.inlined_at[1]})"
        return text


def parse(text: str) -> Program:
    """Parses a whole PTX file."""
    program = Program()
    scanner = Scanner(without_comments(text))
    module_scope = Scope()
    for header, line, span in scanner.module():
        try:
            function = _parse_item(program, header, span is not None)
        except ParseError as error:
            raise ParseError(f"PTX line {line}: {error}") from None
        if function is not None and span is not None:
            program._unread[function.name] = partial(_read_body, function, module_scope, scanner, span)
    module_scope.variables = {name: name for name in program.variables}
    return program


def _read_body(function: Function, module_scope: Scope, scanner: Scanner, span: tuple[int, int]) -> None:
    _Body(function, module_scope).read(scanner.body(*span))


def _parse_item(program: Program, header: str, has_body: bool) -> Function | None:
    if match := _FUNCTION.match(header):
        function = _parse_header(match["kind"] == "entry", match["rest"])
        if not has_body:
            program.externals.add(function.name)
            return None
        program.externals.discard(function.name)
        program.functions[function.name] = function
        return function
    if header.startswith(".target"):
        program.target = header.split()[1].strip(",")
    elif header.startswith(".address_size"):
        if header.split()[1] != "64":
            raise ParseError(f"{header}: only 64-bit addresses")
    elif match := _FILE.match(header):
        program.files[int(match[1])] = match[2]
    elif match := _VARIABLE.match(header):
        variable = _variable(match)
        program.variables[variable.name] = variable
    elif not re.match(r"\.(version|pragma)\b", header):
        raise ParseError(f"cannot read {header[:80]!r}")
    return None


def _parse_header(is_kernel: bool, text: str) -> Function:
    groups = []
    name = None
    rest = text.strip()
    while rest and (rest[0] == "(" or name is None):
        if rest[0] == "(":
            close = rest.index(")")
            groups.append(("parameters" if name else "returns", rest[1:close]))
            rest = rest[close + 1 :].strip()
        else:
            match = re.match(r"[\w$%]+", rest)
            if match is None:
                raise ParseError(f"cannot read the function header {text[:80]!r}")
            name, rest = match[0], rest[match.end() :].strip()
    function = Function(name or "", is_kernel, [], [])
    for kind, inside in groups:
        variables = [parse_variable(part) for part in split_operands(inside)]
        setattr(function, kind, variables)
    for directive, *sizes in _BOUND.findall(rest):
        x, y, z = (int(size or 1) for size in sizes)
        if directive == "maxntid":
            function.max_threads = (x, y, z)
        else:
            function.required_threads = (x, y, z)
    for word in re.findall(r"\.[a-z]\w*", rest):
        if not _HINTS.match(word):
            raise ParseError(f"{function.name}: unknown directive {word}")
    return function


def parse_variable(text: str) -> Variable:
    """Reads one declaration: `.shared .align 4 .b8 name[16]`."""
    match = _VARIABLE.match(text)
    if match is None:
        raise ParseError(f"cannot read the declaration {text[:80]!r}")
    return _variable(match)


def _variable(match: re.Match[str]) -> Variable:
    if match["type"] not in DTYPES:
        raise ParseError(f"{match['name']}: unknown type .{match['type']}")
    element = size_of(match["type"])
    count = 1
    for extent in re.findall(r"\[(\d*)\]", match["dims"]):
        count *= int(extent or 0)
    initial = _initial_bytes(match["initial"], match["type"], count) if match["initial"] else None
    return Variable(
        match["name"],
        match["space"],
        match["type"],
        count * element,
        int(match["align"] or element),
        initial,
        bool(match["dims"]),
    )


def _initial_bytes(text: str, type_name: str, count: int) -> bytes:
    """The bytes of an initialiser; elements that it leaves out are zero."""
    size = size_of(type_name)
    values = split_operands(text.replace("{", "").replace("}", ""))
    found = b""
    for value in values:
        number = parse_integer(value)
        if number is None and (match := re.match(r"0[fFdD]([0-9a-fA-F]+)$", value)):
            number = int(match[1], 16)
        if number is None:
            raise ParseError(f"initialiser {value!r}: only numbers are supported")
        found += struct.pack("<Q", number & (2**64 - 1))[:size]
    return found.ljust(count * size, b"\0")


class _Body:
    """Reads the statements of one function."""

    def __init__(self, function: Function, module_scope: Scope) -> None:
        self.function = function
        self.scopes = [Scope(module_scope)]
        self.scope_count = 0
        self.location: Location | None = None
        for variable in [*function.parameters, *function.returns]:
            self._declare(variable)

    def read(self, pieces: Iterator[Piece]) -> None:
        """Takes every piece of the body."""
        for piece in pieces:
            try:
                self._piece(piece)
            except ParseError as error:
                raise ParseError(f"PTX line {piece.line}: {error}") from None

    def _declare(self, variable: Variable) -> None:
        scope = self.scopes[-1]
        unique = variable.name + scope.suffix
        scope.variables[variable.name] = unique
        self.function.variables[unique] = variable

    def _piece(self, piece: Piece) -> None:
        if piece.kind == "open":
            self.scope_count += 1
            self.scopes.append(Scope(self.scopes[-1], self.scope_count))
        elif piece.kind == "close":
            self.scopes.pop()
        elif piece.kind == "label":
            self._label(piece.text)
        elif piece.kind == "line":
            self._line_directive(piece.text)
        elif piece.text.startswith("."):
            self._directive(piece.text)
        else:
            self._instruction(piece)

    def _label(self, name: str) -> None:
        if name in self.function.labels:
            raise ParseError(f"label {name} in two scopes of one function is not supported")
        self.function.labels[name] = len(self.function.instructions)

    def _line_directive(self, text: str) -> None:
        match = _LOC.match(text)
        if match is None:
            raise ParseError(f"cannot read {text!r}")
        inlined = (int(match[3]), int(match[4])) if match[3] else None
        self.location = Location(int(match[1]), int(match[2]), inlined)

    def _directive(self, text: str) -> None:
        match = re.match(r"(\.\w+)\s*(.*)$", text, re.DOTALL)
        word, rest = (match[1], match[2]) if match else (text, "")
        if word == ".reg":
            type_name, _, names = rest.partition(" ")
            self.scopes[-1].declare_registers(type_name.lstrip("."), names.strip())
        elif word in (".shared", ".local", ".param"):
            self._declare(parse_variable(text))
        elif word == ".branchtargets":
            # The label in front of it names the list.
            name, index = next(reversed(self.function.labels.items()))
            if index != len(self.function.instructions):
                raise ParseError(".branchtargets without a label")
            self.function.branch_targets[name] = split_operands(rest)
        elif word != ".pragma":
            raise ParseError(f"unknown directive {word}")

    def _instruction(self, piece: Piece) -> None:
        text, scope = piece.text, self.scopes[-1]
        guard: Register | Negated | None = None
        if match := _GUARD.match(text):
            register = scope.register(match[2])
            if register is None or register.type != "pred":
                raise ParseError(f"{match[2]}: no such predicate")
            guard = Negated(register) if match[1] else register
            text = text[match.end() :]
        name, _, rest = text.partition(" ")
        opcode, *modifiers = name.split(".")
        operands = tuple(parse_operand(part, scope) for part in split_operands(rest))
        self.function.instructions.append(
            Instruction(opcode, tuple(modifiers), operands, guard, piece.text, piece.line, self.location)
        )
