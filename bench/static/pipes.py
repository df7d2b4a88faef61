"""What a stretch of machine code asks of each part of a multiprocessor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from bench.static.architectures import (
    ARCHITECTURES,
    INTEGER_LANES,
    L2_BYTES,
    PARTITIONS,
    SHARED_BYTES,
    SPECIAL_LANES,
    WARP,
    Device,
)
from bench.static.sass import Instruction

FLOAT = {"FFMA", "FMUL", "FADD", "HFMA2", "HADD2", "HMUL2", "FSWZADD"}
MULTIPLY = {"IMAD", "IDP", "IMUL"}  # integer multiplication: half rate where float32 runs at full rate
SPECIAL = {"MUFU", "FCHK", "I2F", "F2I", "POPC", "FLO", "BREV", "I2FP", "F2F"}
ALU = {
    *("IADD", "IADD3", "VIADD", "LEA", "SHF", "SHL", "SHR", "LOP", "LOP3", "PLOP3", "BMSK", "SGXT", "PRMT", "IABS"),
    *("SEL", "FSEL", "ISETP", "FSETP", "FMNMX", "FMNMX3", "IMNMX", "VIMNMX", "VIADDMNMX"),
    *("MOV", "CS2R", "P2R", "R2P", "F2FP"),
}
_WIDTH = re.compile(r"\.(32|64|128)(?=\.|$)")


@dataclass(frozen=True)
class Load:
    """Cycles that each part of one multiprocessor is busy, were it alone; `serial` adds tensor and all other issue."""

    tensor: float
    issue: float
    float32: float
    alu: float
    special: float
    shared: float
    l2: float
    serial: float

    def parts(self) -> dict[str, float]:
        """By name, without `serial`."""
        names = ("tensor", "issue", "float32", "alu", "special", "shared", "l2")
        return {name: getattr(self, name) for name in names}

    @property
    def bound(self) -> tuple[str, float]:
        """The busiest part."""
        return max(self.parts().items(), key=lambda item: item[1])


def shared_bytes(instruction: Instruction) -> int:
    """Bytes of shared memory that one warp's instruction moves, without bank conflicts."""
    base = instruction.base
    if base == "LDSM":
        matrices = int(instruction.modifiers[-1]) if instruction.modifiers[-1] in ("2", "4") else 1
        return matrices * 8 * 16
    if base == "SHFL":
        return 4 * WARP
    if base in ("LDS", "STS", "LDGSTS", "ATOMS"):
        return _bytes(instruction) * WARP
    return 0


def global_bytes(instruction: Instruction) -> int:
    """Bytes of global memory that one warp's instruction moves."""
    return _bytes(instruction) * WARP if instruction.base in ("LDG", "STG", "LDGSTS", "RED", "ATOMG") else 0


def _bytes(instruction: Instruction) -> int:
    if instruction.predicate == "@!PT":
        return 0  # never runs; the compiler's spacer
    wide = _WIDTH.search("." + ".".join(instruction.modifiers))
    if wide:
        return int(wide[1]) // 8
    narrow = {"U8": 1, "S8": 1, "U16": 2, "S16": 2}
    return next((narrow[m] for m in instruction.modifiers if m in narrow), 4)


def load_of(instructions: Sequence[Instruction], device: Device, warps: int) -> Load:
    """What `warps` warps that each run the instructions once ask of one multiprocessor of the device."""
    arch = ARCHITECTURES[device.architecture]
    bases = [instruction.base for instruction in instructions]

    def pipe(opcodes: set[str], lanes: int) -> float:
        return sum(base in opcodes for base in bases) * WARP / lanes * warps

    hmma = bases.count("HMMA")
    each = warps / PARTITIONS
    tensor = hmma * device.hmma_cycles / device.mma_efficiency * each
    return Load(
        tensor=tensor,
        issue=len(instructions) * each,
        float32=pipe(FLOAT, arch.float_lanes) + pipe(MULTIPLY, INTEGER_LANES),
        alu=pipe(ALU, INTEGER_LANES),
        special=pipe(SPECIAL, SPECIAL_LANES),
        shared=sum(map(shared_bytes, instructions)) * warps / SHARED_BYTES,
        l2=sum(map(global_bytes, instructions)) * warps / L2_BYTES,
        serial=tensor + (len(instructions) - hmma) * each,
    )
