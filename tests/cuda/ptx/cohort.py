"""Threads that run in lock-step, and the fragments that they fall into where they diverge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tests.cuda.ptx.core import Core, Saved
from tests.cuda.ptx.instructions.async_copy import CopyQueue
from tests.cuda.ptx.types import Array, Mask


@dataclass
class Arrival:
    """A fragment that has reached a barrier: which one, for how many threads, and the votes it brought."""

    number: int
    threads: int | None
    yes: int


@dataclass
class Release:
    """What a barrier with votes counted."""

    yes: int
    total: int


@dataclass(eq=False)
class Fragment:
    """Lanes of a cohort at one program counter.

    Attributes:
        lanes: Which lanes.
        pc: The instruction that they execute next.
        stack: Program counters of the calls that they are in, outermost first.
        missing: Lanes that a warp operation at `pc` still waits for; None when the fragment can run.
        arrival: The barrier it waits at, if it does.
        release: Set when that barrier has let it go.
    """

    lanes: Array
    pc: int
    stack: tuple[int, ...] = ()
    missing: Array | None = None
    arrival: Arrival | None = None
    release: Release | None = None

    @property
    def waits(self) -> bool:
        """Whether it cannot run now."""
        return self.missing is not None or self.arrival is not None


class Cohort:
    """Threads that share the core's registers while they run.

    Attributes:
        exists: Lanes that have a thread.
        alive: Lanes whose thread has not exited.
        fragments: The lanes that are alive, by program counter; more than one while they diverge.
    """

    def __init__(self, core: Core, threads: Array, exists: Array, entry: int) -> None:
        self.threads = threads
        self.exists = exists
        self.alive = exists.copy()
        self.copies = CopyQueue(core.lanes)
        self.saved: Saved | None = None
        self.fragments = [Fragment(exists.copy(), entry)]
        self.someone_exited = False
        self._everyone = bool(exists.all())

    def mask(self, fragment: Fragment) -> Mask:
        """The fragment's lanes, True when they are all there are."""
        if len(self.fragments) == 1 and self._everyone:
            return True
        return fragment.lanes

    def next_fragment(self) -> Fragment | None:
        """The one to run: deepest in calls, then lowest, so that lanes that fell behind catch up."""
        if len(self.fragments) == 1:
            fragment = self.fragments[0]
            return None if fragment.waits else fragment
        runnable = [fragment for fragment in self.fragments if not fragment.waits]
        return min(runnable, key=_order) if runnable else None

    def limit(self, fragment: Fragment) -> int | None:
        """The next program counter at which another fragment stands, where the two may join."""
        ahead = [
            other.pc
            for other in self.fragments
            if other is not fragment and other.stack == fragment.stack and other.pc > fragment.pc
        ]
        return min(ahead) if ahead else None

    def join(self, fragment: Fragment) -> None:
        """Joins the fragment with others that have come to the same place."""
        for other in self.fragments:
            same = other is not fragment and other.pc == fragment.pc and other.stack == fragment.stack
            # One that stands at a barrier has executed it already.
            if same and other.arrival is None and other.release is None:
                fragment.lanes = fragment.lanes | other.lanes
                fragment.missing = None
                self.fragments = [f for f in self.fragments if f is not other]
                return self.join(fragment)
        return None

    def split(self, fragment: Fragment, leaving: Array, pc: int) -> Fragment:
        """Lets some lanes of the fragment go on at another place."""
        fragment.lanes = fragment.lanes & ~leaving
        parted = Fragment(leaving, pc, fragment.stack)
        self.fragments.append(parted)
        return parted

    def retire(self, fragment: Fragment, lanes: Array) -> None:
        """Ends the threads of these lanes of the fragment."""
        self.alive &= ~lanes
        self.someone_exited = True
        self._everyone = False
        # A warp operation may have waited for these lanes; it looks again.
        for other in self.fragments:
            other.missing = None
        fragment.lanes = fragment.lanes & ~lanes
        if not np.count_nonzero(fragment.lanes):
            self.fragments = [f for f in self.fragments if f is not fragment]


def _order(fragment: Fragment) -> tuple[int, int]:
    return -len(fragment.stack), fragment.pc
