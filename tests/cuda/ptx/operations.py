"""What an instruction that the machine itself carries out is bound to: jumps, calls, barriers, warp operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from tests.cuda.ptx.context import Step
from tests.cuda.ptx.types import Array


@dataclass
class Branch:
    """Jumps to a label of its function."""

    label: str


@dataclass
class IndexedBranch:
    """Jumps to the label that the index chooses."""

    index: Array
    labels: list[str]


@dataclass
class Call:
    """Calls a device function. The pairs of buffers are (from, to): arguments before, results after."""

    function: str
    arguments: list[tuple[Array, Array]] = field(default_factory=list)
    results: list[tuple[Array, Array]] = field(default_factory=list)


@dataclass
class Return:
    """Returns to the caller; in a kernel the thread exits."""


@dataclass
class Exit:
    """The thread exits."""


@dataclass
class Collective:
    """An operation of the lanes of a warp together.

    Attributes:
        step: Carries it out.
        members: Each lane's mask of the lanes that take part; None when the whole warp must.
    """

    step: Step
    members: Array | None


@dataclass
class Barrier:
    """A barrier of the block.

    Attributes:
        number: Which barrier, each lane's.
        threads: How many threads it waits for, each lane's; None for all of the block.
        votes: Reads the predicate that bar.red combines.
        finish: Writes (threads that voted yes, threads at the barrier) for the lanes that act.
    """

    number: Array
    threads: Array | None = None
    votes: Callable[[], Array] | None = None
    finish: Callable[[int, int, Array], None] | None = None


Operation = Branch | IndexedBranch | Call | Return | Exit | Collective | Barrier
