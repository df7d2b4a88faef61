"""The race checker of the hooks build against vector clocks that keep every access, on random programs."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest

from tests.cuda.engine_cases import run_case

BLOCKS, THREADS, BYTES, WARP = 2, 64, 8, 32
NOTHING, READ, WRITE, ATOMIC, BARRIER, SYNC_WARP = range(6)
ALL = (1 << WARP) - 1


@dataclass(frozen=True)
class Access:
    """One thread's access in a step: `space` 0 is shared memory, 1 is global."""

    block: int
    thread: int
    kind: int
    space: int
    size: int
    offset: int


@dataclass(frozen=True)
class Barrier:
    """All threads of all blocks, each with its block."""


@dataclass(frozen=True)
class SyncWarp:
    """The lanes of `mask` in one warp of each block."""

    warp: int
    mask: int


Step = Access | Barrier | SyncWarp


def draw(rng: np.random.Generator) -> list[Step]:
    """Few threads, mostly on one word, so that chains of accesses and synchronisations between them are common."""
    threads = rng.choice([[0, 1, 33], [0, 1, 2], [1, 32, 33]], axis=0)
    two_blocks = rng.random() < 0.4

    def step() -> Step:
        kind = rng.random()
        if kind < 0.1:
            return Barrier()
        if kind < 0.35:
            lanes = rng.choice(threads % WARP, rng.integers(1, 4))
            mask = ALL if rng.random() < 0.2 else sum({1 << int(lane) for lane in lanes})
            return SyncWarp(int(rng.random() < 0.2), mask)
        access = int(rng.choice([READ, READ, WRITE, ATOMIC]))
        size = 4 if access == ATOMIC or rng.random() < 0.7 else int(rng.choice([1, 2]))
        offset = size * int(rng.integers(0, BYTES // size)) if rng.random() < 0.3 else 0
        block = int(two_blocks and rng.random() < 0.5)
        return Access(block, int(rng.choice(threads)), access, int(rng.random() < 0.5), size, offset)

    return [step() for _ in range(rng.integers(3, 13))]


def encode(program: list[Step]) -> np.ndarray:
    steps = np.zeros((len(program), BLOCKS, THREADS, 2), np.uint32)
    for row, step in zip(steps, program, strict=True):
        if isinstance(step, Access):
            row[step.block, step.thread] = step.kind, step.space << 16 | step.size << 8 | step.offset
        elif isinstance(step, Barrier):
            row[:, :, 0] = BARRIER
        else:
            for lane in range(WARP):
                if step.mask >> lane & 1:
                    row[:, step.warp * WARP + lane] = SYNC_WARP, step.mask
    return steps


def races(program: list[Step]) -> tuple[bool, bool]:
    """Whether two conflicting accesses are unordered: within a block, and between blocks."""
    count = BLOCKS * THREADS
    clocks = np.eye(count, dtype=int)
    seen: list[tuple[Access, int, int]] = []
    within = across = False
    for step in program:
        if isinstance(step, Access):
            own = step.block * THREADS + step.thread
            for other, thread, time in seen:
                same_memory = other.space == step.space and (step.space == 1 or other.block == step.block)
                overlap = max(other.offset, step.offset) < min(other.offset + other.size, step.offset + step.size)
                conflict = {other.kind, step.kind} not in ({READ}, {ATOMIC})
                if same_memory and overlap and conflict and thread != own and clocks[own, thread] < time:
                    within |= other.block == step.block
                    across |= other.block != step.block
            seen.append((step, own, int(clocks[own, own])))
            continue
        for block in range(BLOCKS):
            if isinstance(step, Barrier):
                group = [block * THREADS + t for t in range(THREADS)]
            else:
                lanes = [lane for lane in range(WARP) if step.mask >> lane & 1]
                group = [block * THREADS + step.warp * WARP + lane for lane in lanes]
            clocks[group] = clocks[group].max(axis=0)
            clocks[group, group] += 1
    return within, across


def check(program: list[Step], seed: int) -> bool:
    """Compares the verdicts, and returns whether there is a race."""
    size = (BLOCKS, THREADS)
    result = run_case("program", encode(program), size, np.int32, n=len(program), build="hooks", seed=seed)
    found = result.rules()
    assert found <= {"race", "race-across-blocks"}, result.text()
    expected = races(program)
    # One byte's first conflict hides later ones of that access, so that of two kinds either may be named.
    assert bool(found) == any(expected), f"{expected} expected, found {result.text() or 'nothing'}"
    if sum(expected) == 1:
        assert found == ({"race"} if expected[0] else {"race-across-blocks"}), result.text()
    return any(expected)


@pytest.mark.parametrize("chunk", range(5))
def test_a_race_is_reported_exactly_when_there_is_one(chunk: int) -> None:
    rng = np.random.default_rng(chunk)
    verdicts = []
    for _ in range(500):
        program = draw(rng)
        verdicts.append(check(program, int(rng.integers(0, 6))))
    # The programs must be a fair mix, or agreement means little.
    assert 0.3 < np.mean(verdicts) < 0.8


@pytest.mark.parametrize("space", [0, 1])
def test_all_triples_of_accesses(space: int) -> None:
    """Every triple of kinds and threads on one word, the last two with or without a synchronisation between."""
    places = [(0, 1), (0, 33), (1, 1)]
    actions = [(block, thread, kind) for block, thread in places for kind in (READ, WRITE, ATOMIC)]
    for triple in itertools.product(actions, repeat=3):
        first, second, third = (Access(block, thread, kind, space, 4, 0) for block, thread, kind in triple)
        if first.block == 0 and first.thread == 1:  # else a renaming of one that is
            check([first, second, third], 0)
            check([first, second, SyncWarp(0, 0b10), Barrier(), third], 1)
