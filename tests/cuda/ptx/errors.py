"""What can go wrong: text that is no PTX, forms the engine does not know, and faults of the kernel that runs."""

from __future__ import annotations

from dataclasses import dataclass


class PtxError(Exception):
    """Base of every error of this engine."""


class ParseError(PtxError):
    """The text is not the PTX that this engine reads."""


class UnsupportedPtx(PtxError):
    """An instruction, modifier, operand or register that the engine does not model; it never guesses."""


class LaunchError(PtxError):
    """The launch itself is wrong: grid, block, shared memory or parameters."""


class Fault(Exception):
    """Raised by an instruction; the machine adds where it happened and makes it a KernelError.

    Args:
        rule: Short name of the broken rule, such as "out of bounds".
        message: What happened, in words.
        lane: The lane of the running cohort that did it, or None when it is not one lane's doing.
    """

    def __init__(self, rule: str, message: str, lane: int | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.message = message
        self.lane = lane


@dataclass
class KernelError(PtxError):
    """A kernel broke a rule.

    Attributes:
        rule: "out of bounds", "misaligned", "uninitialised read", "copy in flight", "read-only", "convergence",
            "barrier", "trap", "assert", "cp.async", "no progress".
        message: What happened.
        kernel: Name as in the source.
        block: Index of the block, (x, y, z).
        thread: Index of the thread, (x, y, z); None when it is not one thread's doing.
        instruction: Text of the PTX instruction.
        ptx_line: Its line in the PTX.
        source: "file:line" from the line table, None without -lineinfo.
    """

    rule: str
    message: str
    kernel: str
    block: tuple[int, int, int]
    thread: tuple[int, int, int] | None
    instruction: str
    ptx_line: int
    source: str | None

    def __str__(self) -> str:
        where = f"block {self.block}" + (f", thread {self.thread}" if self.thread is not None else "")
        return (
            f"{self.rule}: {self.message}\n"
            f"  in {self.kernel}, {where}\n"
            f"  at {self.source or 'unknown source line (compile with -lineinfo)'}\n"
            f"  PTX line {self.ptx_line}: {self.instruction}"
        )
