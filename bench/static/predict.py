"""Times that the figures predict. Nothing here was measured.

An attention kernel's blocks are dealt to the multiprocessors in order, each to the one that is free first; a block
takes its tiles times the cycles of a tile. Two times come out: at best every part of the multiprocessor overlaps
perfectly and the busiest one decides; without overlap the cycles of the tensor cores and all other issue add up.
Neither is below what reading and writing every array once takes. Left out: masks, the search for tiles, a block's start
and end, launch, waiting. So both are too short rather than too long.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from bench.static import sass, steady
from bench.static.architectures import WARP, Device
from bench.static.compile import disassembly
from bench.static.figures import Figures, Kernel
from bench.static.flow import Graph
from bench.static.launches import Attention
from bench.static.pipes import Load, load_of
from bench.static.workloads import AttentionWorkload, LossWorkload, visits

HALF, FLOAT = 2, 4  # bytes


@dataclass(frozen=True)
class Prediction:
    """Seconds with perfect overlap and with none; `bound` is the busiest part with perfect overlap."""

    best: float
    serial: float
    bound: str


def makespan(costs: Iterable[float], servers: int) -> float:
    """When the last of the jobs ends, each given in order to the server that is free first."""
    free = [0.0] * servers
    for cost in costs:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def tile_load(kernel: Kernel, device: Device) -> Load:
    """What one tile of one block asks of a multiprocessor."""
    machine = kernel.machine[device.architecture]
    assert machine.steady is not None
    assert kernel.tile is not None
    whole = load_of(machine.steady.instructions, device, kernel.tile.warps)
    return Load(**{name: value / machine.tiles for name, value in vars(whole).items()})


def predict_attention(workload: AttentionWorkload, figures: Figures, device: Device) -> Prediction:
    """The kernels of one call, one after another."""
    parts = []
    for kernel, blocks in figures.launched([workload.problem])[0]:
        memory = compulsory_bytes(kernel.name, workload.problem) / device.memory_bytes
        if kernel.tile is None:
            parts.append(Prediction(memory, memory, "memory"))
            continue
        load = tile_load(kernel, device)
        counts = list(visits(workload, kernel.tile))
        if len(counts) != blocks:
            raise ValueError(f"{kernel.name}: {blocks} blocks are launched, the page counts {len(counts)}")
        tiles = makespan(counts, device.multiprocessors)
        name, busy = load.bound
        best = tiles * busy / device.clock
        serial = tiles * max(load.serial, busy) / device.clock
        parts.append(Prediction(max(best, memory), max(serial, memory), name if best > memory else "memory"))
    longest = max(parts, key=lambda part: part.best)
    return Prediction(sum(p.best for p in parts), sum(p.serial for p in parts), longest.bound)


def compulsory_bytes(kernel: str, problem: Attention) -> int:
    """Bytes that move when each array is read or written once; 0 for kernels whose arrays are small."""
    rows = problem.batch * problem.heads * problem.tokens
    keys = problem.batch * problem.key_heads * problem.tokens
    row, key = HALF * problem.D * rows, HALF * problem.D * keys
    if kernel.startswith("attention_fwd"):
        return 2 * row + 2 * key + FLOAT * rows
    if kernel.startswith("attention_bwd_keys"):
        return 2 * row + 4 * key + 2 * FLOAT * rows
    if kernel.startswith("attention_bwd_queries"):
        return 3 * row + 2 * key + 2 * FLOAT * rows
    return 2 * row + 3 * FLOAT * rows if kernel.startswith("delta") else 0


def predict_loss(workload: LossWorkload, figures: Figures, device: Device) -> Prediction:
    """Logits are read twice, gradients written; or the two loops over a row on their dearest way, with a soft-cap."""
    kernel, _ = figures.launched([workload.problem])[0][0]
    loops = _row_loops(kernel, figures, device)
    passes = -(-workload.problem.vocabulary // (4 * kernel.threads))
    loads = [load_of(loop.instructions, device, kernel.threads // WARP) for loop in loops]
    rows = -(-workload.problem.rows // device.multiprocessors)
    written = FLOAT if workload.problem.dtype == "float32" else HALF
    memory = (2 * FLOAT + written) * workload.problem.rows * workload.problem.vocabulary / device.memory_bytes
    compute = rows * passes * sum(load.bound[1] for load in loads) / device.clock
    bound = "memory" if memory >= compute else max(loads, key=lambda load: load.bound[1]).bound[0]
    return Prediction(max(memory, compute), max(memory, compute), bound)


def _row_loops(kernel: Kernel, figures: Figures, device: Device) -> list[steady.SteadyState]:
    """The loops of the loss kernel that read four logits at a time."""
    work = (("LDG.E.128",), ("MUFU.EX2",))
    mangled = next(m for m, name in figures.names.items() if name == kernel.name)
    source = next(c for c in figures.compiled if (device.architecture, mangled) in c.usage)
    code = sass.parse(disassembly(source.cubins[device.architecture]))
    graph = Graph(next(function for function in code if function.name == mangled))
    found = [steady.best_cycle(graph, loop, work) for loop in graph.loops()]
    return [loop for loop in found if any(steady.matches(x, work[0]) for x in loop.instructions)]
