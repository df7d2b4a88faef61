"""What the hardware can hold and do: limits per architecture, rates per product. From NVIDIA's documents, not measured.

Limits: CUDA C++ Programming Guide, "Compute Capabilities", technical specifications. Rates of instructions: the same
guide, "Throughput of Native Arithmetic Instructions" (results per clock cycle and multiprocessor).
"""

from __future__ import annotations

from dataclasses import dataclass

WARP = 32
PARTITIONS = 4  # schedulers of a multiprocessor; each issues one instruction of a warp a cycle
HMMA_FLOP = 2 * 16 * 8 * 16  # HMMA.16816: one warp's m16n8k16


@dataclass(frozen=True)
class Architecture:
    """One `sm_` target. `virtual` is the PTX it is built from; shared memory in bytes."""

    name: str
    virtual: str
    warps: int  # resident on a multiprocessor
    blocks: int
    shared: int
    shared_block: int  # at most, for one block
    float_lanes: int  # float32 results a cycle and multiprocessor
    registers: int = 65536


# All from the PTX of compute_80, like the machine code of the wheel and what a driver makes of its PTX.
ARCHITECTURES = {
    x.name: x
    for x in (
        Architecture("sm_80", "compute_80", 64, 32, 164 << 10, 163 << 10, 64),
        Architecture("sm_86", "compute_80", 48, 16, 100 << 10, 99 << 10, 128),
        Architecture("sm_89", "compute_80", 48, 24, 100 << 10, 99 << 10, 128),
        Architecture("sm_90", "compute_80", 64, 32, 228 << 10, 227 << 10, 128),
        Architecture("sm_100", "compute_80", 64, 32, 228 << 10, 227 << 10, 128),
        Architecture("sm_120", "compute_80", 48, 24, 100 << 10, 99 << 10, 128),
    )
}
INTEGER_LANES = 64  # integer, logic, compare, select, min and max: the same on all six
SPECIAL_LANES = 16  # MUFU and conversions
SHARED_BYTES = 128  # a cycle and multiprocessor
L2_BYTES = 64  # a cycle and multiprocessor (A100 white paper: 5120 bytes a cycle over 80 slices); taken for all


@dataclass(frozen=True)
class Device:
    """A product. Clock: the boost clock for which `tensor_flops` (dense bfloat16, float32 accumulation) is stated."""

    name: str
    architecture: str
    multiprocessors: int
    clock: float
    tensor_flops: float
    memory_bytes: float  # a second
    source: str
    mma_efficiency: float = 1.0  # share of `tensor_flops` that mma.sync can reach

    @property
    def hmma_cycles(self) -> float:
        """Cycles of one HMMA.16816 on a scheduler's tensor core, at the datasheet's rate."""
        each_cycle = self.tensor_flops / (self.multiprocessors * PARTITIONS * self.clock)
        return HMMA_FLOP / each_cycle


DEVICES = {
    x.name: x
    for x in (
        Device("A100 SXM 80GB", "sm_80", 108, 1.41e9, 312e12, 2.039e12, "NVIDIA A100 datasheet"),
        Device(
            "H100 SXM",
            "sm_90",
            132,
            1.83e9,
            989.4e12,
            3.352e12,
            "NVIDIA H100 white paper; mma.sync reaches about 63 % of it (Luo et al. 2024, arXiv:2402.13499)",
            0.63,
        ),
        Device("RTX 4090", "sm_89", 128, 2.52e9, 165.2e12, 1.008e12, "NVIDIA Ada white paper"),
    )
}
