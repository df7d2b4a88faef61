"""The steady-state path of a kernel's main loop: what one more tile costs when nothing is special about it.

Main loop: of the natural loops, the innermost of those with the most HMMA instructions.
Steady-state path: of the cycles through the main loop's header, those with the most HMMA; of these, those with the
most tile copies (LDSM, LDGSTS); of these, the one with the fewest instructions. So it multiplies a tile, fetches the
next one, and leaves out what only some tiles need and what stands in blocks of its own: masks, the search for the next
32 tiles, a soft-cap. Where the compiler duplicated work for special cases, the cheapest equivalent copy counts. Inner
loops are passed once; one that multiplies or copies tiles has an unknown count, and the analysis refuses it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from bench.static.flow import Block, Graph, Loop
from bench.static.sass import Function, Instruction, SassError, mix

Wanted = tuple[str, ...]
# Opcodes of which a path should pass as many as it can, the most important first.
TENSOR_WORK: tuple[Wanted, ...] = (("HMMA",), ("LDSM", "LDGSTS"))


@dataclass(frozen=True)
class SteadyState:
    """The instructions of one pass of the main loop, in order; `blocks` are the addresses of the path's blocks."""

    instructions: tuple[Instruction, ...]
    blocks: tuple[int, ...]

    @property
    def mix(self) -> Counter[str]:
        """How often each opcode is issued a pass."""
        return mix(self.instructions)

    def tensor_share(self, cycles: float) -> float:
        """Share of issue slots that the tensor cores fill: H c / (H c + others), c the cycles of one HMMA."""
        tensor = self.mix["HMMA"]
        others = len(self.instructions) - tensor
        return tensor * cycles / (tensor * cycles + others)


def steady_state(function: Function, work: Sequence[Wanted] = TENSOR_WORK) -> SteadyState:
    """The steady-state path of the function's main loop. Raises SassError where there is none or it is ambiguous."""
    graph = Graph(function)
    return best_cycle(graph, main_loop(graph, work[0]), work)


def main_loop(graph: Graph, wanted: Wanted) -> Loop:
    """The innermost of the loops with the most instructions of the wanted opcodes."""
    counted = {loop: sum(_count(graph.blocks[i], wanted) for i in loop.body) for loop in graph.loops()}
    most = max(counted.values(), default=0)
    if most == 0:
        raise SassError(f"{graph.name}: no loop contains {' or '.join(wanted)}")
    return min((loop for loop, n in counted.items() if n == most), key=lambda loop: len(loop.body))


def best_cycle(graph: Graph, loop: Loop, work: Sequence[Wanted] = TENSOR_WORK) -> SteadyState:
    """The cycle through the loop's header with the most work, as `work` ranks it, and then the fewest instructions."""
    _refuse_inner_work(graph, loop, work)
    order = [i for i in graph.reachable if i in loop.body]
    position = {block: n for n, block in enumerate(order)}

    def value(block: int) -> tuple[int, ...]:
        this = graph.blocks[block]
        return (*(_count(this, wanted) for wanted in work), -len(this.instructions))

    best: dict[int, tuple[int, ...]] = {loop.header: value(loop.header)}
    before: dict[int, int] = {}
    for block in order:
        for following in graph.blocks[block].successors:
            if block not in best or position.get(following, -1) <= position[block]:
                continue  # out of the loop, or back to an earlier block
            total = tuple(a + b for a, b in zip(best[block], value(following), strict=True))
            if following not in best or total > best[following]:
                best[following], before[following] = total, block
    path = [max(loop.latches, key=lambda block: best[block])]
    while path[-1] != loop.header:
        path.append(before[path[-1]])
    blocks = [graph.blocks[i] for i in reversed(path)]
    return SteadyState(
        tuple(x for block in blocks for x in block.instructions), tuple(block.offset for block in blocks)
    )


def _count(block: Block, wanted: Wanted) -> int:
    return sum(matches(instruction, wanted) for instruction in block.instructions)


def matches(instruction: Instruction, wanted: Wanted) -> bool:
    """Whether the opcode is one of `wanted`, with any further modifiers: LDG.E.128 stands for LDG.E.128.CONSTANT."""
    return any(instruction.opcode == name or instruction.opcode.startswith(name + ".") for name in wanted)


def _refuse_inner_work(graph: Graph, loop: Loop, work: Sequence[Wanted]) -> None:
    for inner in graph.loops():
        if not inner.body < loop.body:
            continue
        for block in sorted(inner.body):
            if any(_count(graph.blocks[block], wanted) for wanted in work):
                raise SassError(
                    f"{graph.name}: the block at {graph.blocks[block].offset:#x} multiplies or copies tiles in a loop "
                    "inside the main loop: how often is unknown; unroll it"
                )
