"""How many blocks fit on a multiprocessor, and what stops more."""

from __future__ import annotations

from dataclasses import dataclass

from bench.static.architectures import WARP, Architecture

REGISTER_UNIT = 256  # registers are handed to a warp in units of this many
WARP_UNIT = 4  # and to warps in fours, one a scheduler
SHARED_UNIT = 128
SHARED_SYSTEM = 1024  # bytes that the system takes for each block


@dataclass(frozen=True)
class Occupancy:
    """Resident blocks and warps of one kernel on one multiprocessor; `limit` names what allows no more."""

    blocks: int
    warps: int
    share: float
    limit: str


def occupancy(arch: Architecture, registers: int, shared: int, threads: int) -> Occupancy:
    """Occupancy of blocks of `threads` with `registers` a thread and `shared` bytes, static and dynamic.

    A kernel that cannot start (more shared memory than a block may have) has 0 blocks.
    """
    if threads < 1:
        raise ValueError(f"a block of {threads} threads")
    warps = -(-threads // WARP)
    per_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    by_registers = arch.registers // per_warp // WARP_UNIT * WARP_UNIT // warps if registers else arch.blocks
    used = -(-(shared + SHARED_SYSTEM) // SHARED_UNIT) * SHARED_UNIT
    allowed = {
        "warps": arch.warps // warps,
        "blocks": arch.blocks,
        "shared memory": arch.shared // used if shared <= arch.shared_block else 0,
        "registers": by_registers,
    }
    limit = min(allowed, key=lambda name: allowed[name])
    blocks = allowed[limit]
    return Occupancy(blocks, blocks * warps, blocks * warps / arch.warps, limit)
