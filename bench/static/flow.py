"""Basic blocks of a kernel's machine code, their edges, dominators and natural loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.static.sass import Function, Instruction, SassError

_ENDS = {"EXIT", "RET", "KILL"}
_INDIRECT = {"BRX", "JMX", "BRXU", "JMXU"}
_BRANCHES = {"BRA", "JMP", *_INDIRECT}
_JUMPS = {*_BRANCHES, "BSYNC", "CALL", "WARPSYNC"}
_NAMES_A_LABEL = {*_ENDS, *_JUMPS, "BSSY"}


@dataclass(frozen=True)
class Block:
    """Instructions that run one after another; `successors` are the blocks that may follow."""

    index: int
    instructions: tuple[Instruction, ...]
    successors: tuple[int, ...]

    @property
    def offset(self) -> int:
        """Address of the first instruction, as in the disassembly."""
        return self.instructions[0].offset


@dataclass(frozen=True)
class Loop:
    """A natural loop: `header` dominates `body`, and every edge from `latches` to it closes the loop."""

    header: int
    body: frozenset[int]
    latches: frozenset[int]


class Graph:
    """The control flow of one function. Block 0 is the entry."""

    def __init__(self, function: Function) -> None:
        self.name = function.name
        self.blocks = _blocks(function)
        self.reachable = self._postorder()[::-1]
        self.dominators = self._dominators()

    def predecessors(self) -> dict[int, list[int]]:
        """The blocks from which each reachable block may be entered."""
        found: dict[int, list[int]] = {i: [] for i in self.reachable}
        for i in self.reachable:
            for j in self.blocks[i].successors:
                found[j].append(i)
        return found

    def is_back_edge(self, tail: int, head: int) -> bool:
        """Whether the edge returns to a block that every way to its tail has passed."""
        return head in self.dominators[tail]

    def loops(self) -> list[Loop]:
        """All natural loops; those with one header are one loop."""
        before = self.predecessors()
        latches: dict[int, set[int]] = {}
        for i in self.reachable:
            for j in self.blocks[i].successors:
                if self.is_back_edge(i, j):
                    latches.setdefault(j, set()).add(i)
        return [
            Loop(header, frozenset(_reaching(tails, header, before)), frozenset(tails))
            for header, tails in sorted(latches.items())
        ]

    def forward_edges(self, block: int) -> Iterator[int]:
        """Successors without the edges that close a loop."""
        return (j for j in self.blocks[block].successors if not self.is_back_edge(block, j))

    def _postorder(self) -> list[int]:
        order: list[int] = []
        seen = {0}
        stack = [(0, iter(self.blocks[0].successors))]
        while stack:
            block, following = stack[-1]
            for j in following:
                if j not in seen:
                    seen.add(j)
                    stack.append((j, iter(self.blocks[j].successors)))
                    break
            else:
                order.append(block)
                stack.pop()
        return order

    def _dominators(self) -> dict[int, frozenset[int]]:
        """Cooper, Harvey and Kennedy 2001: immediate dominators to a fixed point, then the sets."""
        position = {block: i for i, block in enumerate(self.reachable)}
        before = self.predecessors()
        above: dict[int, int] = {0: 0}
        changed = True
        while changed:
            changed = False
            for block in self.reachable[1:]:
                known = [p for p in before[block] if p in above]
                nearest = known[0]
                for other in known[1:]:
                    while nearest != other:
                        while position[nearest] > position[other]:
                            nearest = above[nearest]
                        while position[other] > position[nearest]:
                            other = above[other]
                if above.get(block) != nearest:
                    above[block] = nearest
                    changed = True
        sets: dict[int, frozenset[int]] = {0: frozenset({0})}
        for block in self.reachable[1:]:
            sets[block] = sets[above[block]] | {block}
        return sets


def _reaching(tails: set[int], header: int, before: dict[int, list[int]]) -> set[int]:
    body, stack = {header}, list(tails)
    while stack:
        block = stack.pop()
        if block not in body:
            body.add(block)
            stack.extend(before[block])
    return body


def _conditional(instruction: Instruction) -> bool:
    """Whether the instruction may also fall through: predicated, or a branch with a condition among its operands."""
    if instruction.predicate not in ("", "@PT", "@UPT"):
        return True
    return instruction.base in ("BRA", "JMP") and not instruction.operands.startswith("`(")


def _blocks(function: Function) -> list[Block]:
    code = function.instructions
    if not code:
        raise SassError(f"{function.name} has no instructions")
    starts = {0, *(i for i in function.labels.values() if i < len(code))}
    for i, instruction in enumerate(code):
        if instruction.targets and instruction.base not in _NAMES_A_LABEL:
            raise SassError(f"{function.name}: {instruction.opcode} at {instruction.offset:#x} names a label; why?")
        if instruction.base in _ENDS or instruction.base in _JUMPS:
            starts.add(i + 1)
    bounds = sorted(i for i in starts if i < len(code))
    number = {start: i for i, start in enumerate(bounds)}
    joins = _joins(function)
    blocks = []
    for i, start in enumerate(bounds):
        end = bounds[i + 1] if i + 1 < len(bounds) else len(code)
        following = _successors(function, code[end - 1], end, joins.get(end - 1))
        blocks.append(Block(i, tuple(code[start:end]), tuple(sorted({number[j] for j in following}))))
    return blocks


def _joins(function: Function) -> dict[int, str]:
    """For each BSYNC the label at which its threads meet: that of the latest BSSY on the same barrier above it."""
    meets: dict[str, str] = {}
    found = {}
    for i, instruction in enumerate(function.instructions):
        barrier = instruction.operands.split(",")[0].strip()
        if instruction.base == "BSSY":
            meets[barrier] = instruction.targets[0]
        elif instruction.base == "BSYNC" and barrier in meets:
            found[i] = meets[barrier]
    return found


def _successors(function: Function, last: Instruction, following: int, join: str | None) -> list[int]:
    def at(label: str) -> int:
        if label not in function.labels:
            raise SassError(f"{function.name}: {last.opcode} at {last.offset:#x} goes to {label}, which is not in it")
        return function.labels[label]

    falls = [following] if following < len(function.instructions) else []
    if last.base in _ENDS:
        return falls if _conditional(last) else []
    if last.base in _INDIRECT and not last.targets:
        raise SassError(f"{function.name}: {last.opcode} at {last.offset:#x} jumps to targets that are not listed")
    if last.base == "BSYNC":
        return falls if join is None else [at(join)]
    if last.base in ("CALL", "WARPSYNC"):
        # A call of a function ($name) returns; one of a label in the kernel is a jump.
        return falls + [at(label) for label in last.targets if label.startswith(".L")]
    if last.base in _BRANCHES:
        return [at(label) for label in last.targets] + (falls if _conditional(last) else [])
    return falls
