"""All static figures of all kernels: what the compiler reports, how they are launched, and their steady state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.static import sass
from bench.static.architectures import ARCHITECTURES
from bench.static.compile import USUAL, Compiled, compile_source, disassembly, sources
from bench.static.kernels import Tile, dtype_of, in_order, is_aligned, readable, tile_of
from bench.static.launches import Problem, every_dispatch, launcher, launches
from bench.static.occupancy import Occupancy, occupancy
from bench.static.ptxas import Usage
from bench.static.steady import SteadyState, steady_state


@dataclass
class Machine:
    """One kernel on one architecture; code figures only where the machine code was read."""

    usage: Usage
    occupancy: Occupancy
    mix: Counter[str] = field(default_factory=Counter)
    steady: SteadyState | None = None
    tiles: int = 1  # that one pass of the main loop handles


@dataclass
class Kernel:
    """One instantiation. `shared` is static and dynamic, `problems` what of the dispatch reaches it."""

    name: str
    tile: Tile | None
    threads: int
    shared: int
    problems: list[Problem]
    machine: dict[str, Machine] = field(default_factory=dict)

    @property
    def dtype(self) -> str | None:
        """bf16, f16 or f32, where there is one."""
        return dtype_of(self.name)

    @property
    def tensor(self) -> bool:
        """Whether it multiplies on tensor cores and copies asynchronously: the kernels with a requirement."""
        return self.tile is not None and is_aligned(self.name)


@dataclass
class Figures:
    """Kernels by readable name; the compiled sources and the program that tells how problems are launched."""

    kernels: dict[str, Kernel]
    compiled: list[Compiled]
    names: dict[str, str]
    program: Path

    def launched(self, problems: Sequence[Problem]) -> list[list[tuple[Kernel, int]]]:
        """For each problem the kernels it launches, with their number of blocks."""
        found = launches(self.program, problems)
        return [[(self.kernels[self.names[x.kernel]], x.blocks) for x in each] for each in found]


def collect(architectures: Sequence[str] = USUAL) -> Figures:
    """Compiles what changed and reads everything, machine code for the usual architectures.

    Raises SassError or ValueError where something is not understood.
    """
    compiled = [compile_source(path, architectures) for path in sources()]
    usage = {key: value for each in compiled for key, value in each.usage.items()}
    names = readable(sorted({kernel for _, kernel in usage}))
    program = launcher(compiled)
    problems = every_dispatch()
    found: dict[str, Kernel] = {}
    for problem, made in zip(problems, launches(program, problems), strict=True):
        for launch in made:
            name = names[launch.kernel]
            static = usage["sm_80", launch.kernel].shared
            kernel = found.setdefault(name, Kernel(name, tile_of(name), launch.threads, static + launch.shared, []))
            if (kernel.threads, kernel.shared) != (launch.threads, static + launch.shared):
                raise ValueError(f"{name} is launched with different threads or shared memory for {problem}")
            kernel.problems.append(problem)
    unreached = sorted(set(names.values()) - set(found))
    if unreached:
        raise ValueError(f"compiled, but launched by no problem: {', '.join(unreached)}")
    for (arch, mangled), each in usage.items():
        kernel = found[names[mangled]]
        fits = occupancy(ARCHITECTURES[arch], each.registers, kernel.shared, kernel.threads)
        kernel.machine[arch] = Machine(each, fits)
    for each_source in compiled:
        for arch in USUAL if each_source.usage else ():
            for function in sass.parse(disassembly(each_source.cubins[arch])):
                read_code(found[names[function.name]], arch, function)
    return Figures({name: found[name] for name in in_order(found)}, compiled, names, program)


def read_code(kernel: Kernel, arch: str, function: sass.Function) -> None:
    """Notes the instructions of a kernel and, where it multiplies on tensor cores, its steady state."""
    machine = kernel.machine[arch]
    machine.mix = sass.mix(function.instructions)
    if kernel.tile is None:
        return
    machine.steady = steady_state(function)
    machine.tiles, rest = divmod(machine.steady.mix["HMMA"], kernel.tile.hmma)
    if rest or machine.tiles == 0:
        raise sass.SassError(
            f"{kernel.name} on {arch}: {machine.steady.mix['HMMA']} HMMA in one pass of the main loop, "
            f"which is no multiple of the {kernel.tile.hmma} of a tile"
        )
