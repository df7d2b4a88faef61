"""Machine code (SASS) as `nvdisasm -c` prints it, parsed into functions and instructions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

_FUNCTION = re.compile(r"^\.text\.(\S+):$")
_LABEL = re.compile(r"^(\.L_\w+|\$[\w$.]+):$")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P[T\d]+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_TARGET = re.compile(r"`\(([^)]+)\)")
_BRANCH_TARGETS = re.compile(r'BRANCH_TARGETS ([^"]+)"')


class SassError(ValueError):
    """Machine code that this parser or the analysis does not understand; nothing is guessed."""


@dataclass(frozen=True)
class Instruction:
    """One machine instruction. `targets` are the labels it names, for branches and calls."""

    offset: int
    predicate: str
    opcode: str
    operands: str
    targets: tuple[str, ...] = ()

    @property
    def base(self) -> str:
        """The opcode without its modifiers: HMMA of HMMA.16816.F32.BF16."""
        return self.opcode.split(".", 1)[0]

    @property
    def modifiers(self) -> tuple[str, ...]:
        """What follows the opcode's first dot."""
        return tuple(self.opcode.split(".")[1:])


@dataclass
class Function:
    """A kernel: its instructions in order, and the instruction at which each label stands."""

    name: str
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)


def _instruction(line: str) -> Instruction | None:
    match = _INSTRUCTION.match(line)
    if not match:
        return None
    offset, predicate, opcode, operands = match.groups()
    targets = tuple(_TARGET.findall(operands))
    listed = _BRANCH_TARGETS.search(line)
    if listed:
        targets += tuple(part.strip() for part in listed[1].split(","))
    return Instruction(int(offset, 16), predicate or "", opcode, operands, targets)


def parse(text: str) -> list[Function]:
    """The functions of a disassembly. Raises SassError on a line that looks like code but does not parse."""
    functions: list[Function] = []
    for number, line in enumerate(text.splitlines(), 1):
        start = _FUNCTION.match(line)
        if start:
            functions.append(Function(start[1]))
            continue
        if not functions:
            continue
        label = _LABEL.match(line.strip())
        if label:
            functions[-1].labels[label[1]] = len(functions[-1].instructions)
            continue
        instruction = _instruction(line)
        if instruction:
            functions[-1].instructions.append(instruction)
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+\S", line):
            raise SassError(
                f"line {number} of the disassembly is not an instruction that this parser knows: {line.strip()}"
            )
    if not functions:
        raise SassError("no `.text.<kernel>:` section in the disassembly")
    return functions


def mix(instructions: Iterable[Instruction]) -> Counter[str]:
    """How often each opcode (without modifiers) stands in the code."""
    return Counter(instruction.base for instruction in instructions)
