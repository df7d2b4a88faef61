"""Runs the threads of one block: in lock-step, or warp by warp in random order; and its barriers."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.cohort import Cohort, Fragment, Release
from tests.cuda.ptx.errors import Fault
from tests.cuda.ptx.machine import InstructionFault, Machine, name_lanes
from tests.cuda.ptx.types import Array

# How long a warp runs before another may take its place, and how often: mostly until it must wait.
_SLICES = (5.0, 64.0, 512.0, float("inf"))
_SLICE_ODDS = (0.1, 0.15, 0.15, 0.6)

Waiting = tuple[Cohort, Fragment]


class Block:
    """One block of threads on a machine.

    Args:
        machine: What executes.
        threads: The block's extent.
        random: Picks the warp that runs and for how long; None runs all threads in lock-step.
    """

    def __init__(self, machine: Machine, threads: tuple[int, int, int], random: np.random.Generator | None) -> None:
        self._machine = machine
        self._extent = threads
        self._random = random
        total = threads[0] * threads[1] * threads[2]
        self._total = total
        lanes, entry = machine.core.lanes, machine.code.entries[machine.core.kernel.name]
        self._cohorts = []
        for first in range(0, total, lanes):
            index = np.arange(first, first + lanes)
            self._cohorts.append(Cohort(machine.core, index, index < total, entry))
        self._current: Cohort | None = None

    def run(self) -> None:
        """Runs every thread to its end."""
        while True:
            runnable = [cohort for cohort in self._cohorts if cohort.next_fragment() is not None]
            if runnable:
                self._run_one(runnable)
            elif any(cohort.fragments for cohort in self._cohorts):
                self._release()
            else:
                return

    def _run_one(self, runnable: list[Cohort]) -> None:
        if self._random is None:
            cohort, budget = runnable[0], float("inf")
        else:
            cohort = runnable[int(self._random.integers(len(runnable)))]
            budget = float(self._random.choice(_SLICES, p=_SLICE_ODDS))
        self._switch_to(cohort)
        self._machine.run(cohort, budget)

    def _switch_to(self, cohort: Cohort) -> None:
        if cohort is self._current:
            return
        core = self._machine.core
        if self._current is not None:
            self._current.saved = core.save()
        if cohort.saved is None:
            core.poison()
        else:
            core.restore(cohort.saved)
            cohort.saved = None
        core.set_threads(cohort.threads, self._extent)
        core.copies = cohort.copies
        self._current = cohort

    def _release(self) -> None:
        """Lets threads go from the barriers that are complete; when there is none, nothing can ever run again."""
        arrived: dict[int, list[Waiting]] = {}
        for cohort in self._cohorts:
            for fragment in cohort.fragments:
                if fragment.arrival is not None:
                    arrived.setdefault(fragment.arrival.number, []).append((cohort, fragment))
        complete = [waiting for number, waiting in arrived.items() if self._is_complete(number, waiting)]
        for waiting in complete:
            yes = sum(fragment.arrival.yes for _, fragment in waiting if fragment.arrival is not None)
            total = _count(waiting)
            for _, fragment in waiting:
                fragment.arrival, fragment.release = None, Release(yes, total)
        if not complete:
            raise self._stuck(arrived)

    def _is_complete(self, number: int, waiting: list[Waiting]) -> bool:
        here = _count(waiting)
        for cohort, fragment in waiting:
            assert fragment.arrival is not None
            wanted = fragment.arrival.threads
            if wanted is None and here < self._total:
                return False
            if wanted is not None and here != wanted:
                if here > wanted:
                    raise self._fault(
                        cohort, fragment, "barrier", f"{here} threads at barrier {number}, which is for {wanted}"
                    )
                return False
        first = waiting[0][1]
        for cohort, fragment in waiting:
            if fragment.pc != first.pc:
                place = self.place(first.pc)
                message = f"the block's warps meet at different barriers: some wait at {place}"
                raise self._fault(cohort, fragment, "barrier", message)
        return True

    def _stuck(self, arrived: dict[int, list[Waiting]]) -> InstructionFault:
        """What is wrong when no thread can go on."""
        for cohort in self._cohorts:
            for fragment in cohort.fragments:
                if fragment.missing is not None:
                    where = self._where_lanes_are(cohort, fragment.missing)
                    rule = "barrier" if self._machine.code.instructions[fragment.pc].opcode == "bar" else "convergence"
                    if self._machine.code.instructions[fragment.pc].modifiers[:1] == ("warp",):
                        rule = "convergence"
                    message = f"waits for {name_lanes(fragment.missing)}: {where}"
                    return self._fault(cohort, fragment, rule, message)
        cohort, fragment = next(iter(arrived.values()))[0]
        here = sum(_count(waiting) for waiting in arrived.values())
        exited = self._total - sum(int(np.count_nonzero(c.alive)) for c in self._cohorts)
        if len(arrived) > 1:
            places = ", ".join(self.place(waiting[0][1].pc) for waiting in arrived.values())
            message = f"threads wait at different barriers and none is complete: {places}"
        elif exited:
            message = f"{here} of {self._total} threads are at the barrier and {exited} have exited"
        else:
            message = f"{here} of {self._total} threads are at the barrier"
        return self._fault(cohort, fragment, "barrier", message)

    def _where_lanes_are(self, cohort: Cohort, lanes: Array) -> str:
        places = {
            f"{self.place(other.pc)}{' at a barrier' if other.arrival else ''}"
            for other in cohort.fragments
            if np.count_nonzero(other.lanes & lanes)
        }
        return "they are at " + " and ".join(sorted(places))

    def place(self, pc: int) -> str:
        """Source and PTX line of an instruction."""
        instruction = self._machine.code.instructions[pc]
        source = self._machine.code.program.where(instruction.location)
        return f"{source} (PTX line {instruction.line})" if source else f"PTX line {instruction.line}"

    def _fault(self, cohort: Cohort, fragment: Fragment, rule: str, message: str) -> InstructionFault:
        core = self._machine.core
        core.set_threads(cohort.threads, self._extent)
        return InstructionFault(Fault(rule, message, int(np.flatnonzero(fragment.lanes)[0])), fragment.pc)


def _count(waiting: list[Waiting]) -> int:
    return sum(int(np.count_nonzero(fragment.lanes)) for _, fragment in waiting)
