"""Runs one cohort: straight code instruction by instruction, and divergence, calls and warp operations itself."""

from __future__ import annotations

import numpy as np

from tests.cuda.ptx.code import Code
from tests.cuda.ptx.cohort import Arrival, Cohort, Fragment
from tests.cuda.ptx.context import Step
from tests.cuda.ptx.core import WARP, Core
from tests.cuda.ptx.errors import Fault
from tests.cuda.ptx.operations import Barrier, Branch, Call, Collective, Exit, IndexedBranch, Return
from tests.cuda.ptx.types import Array


class InstructionFault(Exception):
    """A fault and the program counter it happened at."""

    def __init__(self, fault: Fault, pc: int) -> None:
        super().__init__(fault.message)
        self.fault = fault
        self.pc = pc


class Machine:
    """Executes a kernel's code on a core.

    Attributes:
        executed: Which instructions have run at all.
        count: Instructions executed, each for all lanes of a fragment at once.

    Args:
        limit: A launch that executes more instructions than this counts as endless.
    """

    def __init__(self, core: Core, code: Code, limit: int) -> None:
        self.core = core
        self.code = code
        self._limit = limit
        self.executed = np.zeros(len(code.instructions), np.bool_)
        self.count = 0

    def run(self, cohort: Cohort, budget: float) -> None:
        """Runs until every fragment waits or has exited, or about `budget` instructions are done."""
        stop = min(self.count + budget, self._limit)
        while True:
            fragment = cohort.next_fragment()
            if fragment is None:
                return
            if self.count >= stop:
                if self.count >= self._limit:
                    fault = Fault("no progress", f"still running after {self._limit} instructions")
                    raise InstructionFault(fault, fragment.pc)
                return
            self._straight(cohort, fragment, stop)

    def _straight(self, cohort: Cohort, fragment: Fragment, stop: float) -> None:
        """Runs up to the next operation of the machine, or to where the fragment may join another."""
        start = pc = fragment.pc
        end = self.code.run_end[start]
        if len(cohort.fragments) > 1:
            limit = cohort.limit(fragment)
            if limit is not None and limit < end:
                end = limit
        if end - start > stop - self.count:
            end = max(start + 1, start + int(stop - self.count))
        mask = cohort.mask(fragment)
        steps: list[Step] = self.code.steps
        try:
            for pc in range(start, end):
                steps[pc](mask)
        except Fault as fault:
            raise InstructionFault(fault, pc) from None
        self.executed[start:end] = True
        self.count += end - start
        fragment.pc = end
        if len(cohort.fragments) > 1:
            cohort.join(fragment)
        if end in self.code.operations:
            self._operate(cohort, fragment, end)
            if len(cohort.fragments) > 1 and fragment in cohort.fragments:
                cohort.join(fragment)

    def _operate(self, cohort: Cohort, fragment: Fragment, pc: int) -> None:
        operation = self.code.operations[pc]
        guard = self.code.guards.get(pc)
        self.executed[pc] = True
        self.count += 1
        acting = fragment.lanes
        if guard is not None:
            acting = guard.holds(fragment.lanes)
            if isinstance(operation, Branch):
                self._jump(cohort, fragment, acting, self.code.target(pc, operation.label))
                return
            # Lanes for which the guard does not hold go on alone.
            if np.count_nonzero(acting) == 0:
                fragment.pc = pc + 1
                return
            if np.count_nonzero(acting) < np.count_nonzero(fragment.lanes):
                cohort.split(fragment, fragment.lanes & ~acting, pc + 1)
        try:
            if isinstance(operation, Branch):
                fragment.pc = self.code.target(pc, operation.label)
            elif isinstance(operation, Collective):
                self._collective(cohort, fragment, operation)
            elif isinstance(operation, Barrier):
                self._barrier(cohort, fragment, operation)
            elif isinstance(operation, IndexedBranch):
                self._indexed_jump(cohort, fragment, operation)
            elif isinstance(operation, Call):
                _copy(operation.arguments, fragment.lanes)
                fragment.stack = (*fragment.stack, pc)
                fragment.pc = self.code.entries[operation.function]
            elif isinstance(operation, Return) and fragment.stack:
                self._return(fragment)
            else:
                assert isinstance(operation, Return | Exit)
                cohort.retire(fragment, fragment.lanes)
        except Fault as fault:
            raise InstructionFault(fault, pc) from None

    def _jump(self, cohort: Cohort, fragment: Fragment, taken: Array, target: int) -> None:
        count = np.count_nonzero(taken)
        if count == np.count_nonzero(fragment.lanes):
            fragment.pc = target
            return
        fragment.pc += 1
        if count:
            cohort.join(cohort.split(fragment, taken, target))

    def _indexed_jump(self, cohort: Cohort, fragment: Fragment, operation: IndexedBranch) -> None:
        chosen = operation.index[fragment.lanes]
        if int(chosen.max()) >= len(operation.labels):
            raise Fault("out of bounds", f"index {int(chosen.max())} of {len(operation.labels)} branch targets")
        first, *others = np.unique(chosen).tolist()
        for index in others:
            leaving = fragment.lanes & (operation.index == index)
            cohort.split(fragment, leaving, self.code.target(fragment.pc, operation.labels[index]))
        fragment.pc = self.code.target(fragment.pc, operation.labels[first])

    def _return(self, fragment: Fragment) -> None:
        *outer, caller = fragment.stack
        call = self.code.operations[caller]
        assert isinstance(call, Call)
        _copy(call.results, fragment.lanes)
        fragment.stack = tuple(outer)
        fragment.pc = caller + 1

    # Operations of the lanes of a warp together.

    def _collective(self, cohort: Cohort, fragment: Fragment, operation: Collective) -> None:
        missing = _missing(cohort, fragment.lanes, operation.members)
        if missing is not None:
            fragment.missing = missing
            return
        operation.step(cohort.mask(fragment))
        fragment.pc += 1

    def _barrier(self, cohort: Cohort, fragment: Fragment, operation: Barrier) -> None:
        if fragment.release is not None:
            if operation.finish is not None:
                operation.finish(fragment.release.yes, fragment.release.total, fragment.lanes)
            fragment.release = None
            fragment.pc += 1
            return
        missing = _missing(cohort, fragment.lanes, None)
        if missing is not None:
            fragment.missing = missing
            return
        number = _uniform(operation.number, fragment.lanes, "barrier number")
        threads = None
        if operation.threads is not None:
            threads = _uniform(operation.threads, fragment.lanes, "number of threads at a barrier")
        if number >= 16:
            raise Fault("barrier", f"barrier {number}; there are 16")
        yes = np.count_nonzero(operation.votes() & fragment.lanes) if operation.votes else 0
        fragment.arrival = Arrival(number, threads, int(yes))


def _copy(pairs: list[tuple[Array, Array]], lanes: Array) -> None:
    for source, target in pairs:
        target[lanes] = source[lanes]


def _uniform(values: Array, lanes: Array, what: str) -> int:
    found = np.unique(values[lanes])
    if len(found) != 1:
        raise Fault("barrier", f"threads differ in the {what}: {found.tolist()}")
    return int(found[0])


def _missing(cohort: Cohort, lanes: Array, members: Array | None) -> Array | None:
    """The lanes that an operation of these lanes must wait for; None when all are here."""
    if members is None:
        if len(cohort.fragments) == 1 and not cohort.someone_exited:
            return None
        # The whole warp, and none of its threads may have exited.
        warps = np.repeat(lanes.reshape(-1, WARP).any(1), WARP)
        wanted = warps & cohort.exists
        gone = wanted & ~cohort.alive
        if np.count_nonzero(gone):
            raise Fault("convergence", f"{name_lanes(gone)} exited before an operation of the whole warp")
        absent = wanted & ~lanes
        return absent if np.count_nonzero(absent) else None
    if np.count_nonzero(members != 0xFFFF_FFFF) == 0:
        if len(cohort.fragments) == 1:
            return None
        absent = np.repeat(lanes.reshape(-1, WARP).any(1), WARP) & cohort.alive & ~lanes
        return absent if np.count_nonzero(absent) else None
    return _missing_members(cohort, lanes, members)


def _missing_members(cohort: Cohort, lanes: Array, members: Array) -> Array | None:
    bit = np.uint32(1) << (np.arange(len(lanes), dtype=np.uint32) % WARP)
    stranger = lanes & ((members & bit) == 0)
    if np.count_nonzero(stranger):
        lane = int(np.flatnonzero(stranger)[0])
        raise Fault("convergence", f"lane {lane % WARP} is not in its own mask {int(members[lane]):#010x}", lane)
    absent = np.zeros_like(lanes)
    for lane in np.flatnonzero(lanes).tolist():
        start = lane // WARP * WARP
        named = np.zeros_like(lanes)
        named[start : start + WARP] = (int(members[lane]) >> np.arange(WARP)) & 1
        others = named & lanes & (members != members[lane])
        if np.count_nonzero(others):
            other = int(np.flatnonzero(others)[0])
            message = f"lanes {lane % WARP} and {other % WARP} take part with different masks"
            raise Fault("convergence", f"{message}, {int(members[lane]):#010x} and {int(members[other]):#010x}", lane)
        absent |= named & cohort.alive & ~lanes
    return absent if np.count_nonzero(absent) else None


def name_lanes(lanes: Array) -> str:
    """The lanes in words, of the first warp that has any."""
    warps = lanes.reshape(-1, WARP)
    first = int(np.flatnonzero(warps.any(1))[0])
    listed = np.flatnonzero(warps[first]).tolist()
    return f"{'lanes' if len(listed) > 1 else 'lane'} {', '.join(map(str, listed))} of a warp"
