"""The requirements on the machine code of every kernel, as functions that name what breaks them."""

from __future__ import annotations

from bench.static.architectures import DEVICES
from bench.static.figures import Figures, Kernel

# Share of tensor-core issue slots in the main loop for bfloat16, D = 128, on sm_80.
SHARES = {
    "attention_fwd_kernel": 0.60,
    "attention_bwd_keys_kernel": 0.45,
    "attention_bwd_queries_kernel": 0.45,
    "lora_product_kernel": 0.60,
    "grouped_product_kernel": 0.60,
}
_DEPTH = {"lora_product_kernel": 32, "grouped_product_kernel": 32}  # of a step of a matrix product, in the place of D
SHARE_ARCHITECTURE = "sm_80"


def memory_violations(figures: Figures) -> list[str]:
    """Spills, stack and local memory: none anywhere."""
    found = []
    for name, kernel in figures.kernels.items():
        for arch, machine in kernel.machine.items():
            if machine.usage.spills or machine.usage.stack:
                found.append(
                    f"{name} on {arch}: {machine.usage.spills} bytes of spills, {machine.usage.stack} bytes of stack"
                )
            local = machine.mix["STL"] + machine.mix["LDL"]
            if local:
                found.append(f"{name} on {arch}: {local} accesses of local memory (STL, LDL)")
    return found


def start_violations(figures: Figures) -> list[str]:
    """Every kernel fits on every architecture."""
    return [
        f"{name} on {arch}: cannot start, {machine.occupancy.limit} ({kernel.shared} bytes of shared memory)"
        for name, kernel in figures.kernels.items()
        for arch, machine in kernel.machine.items()
        if machine.occupancy.blocks == 0
    ]


def instruction_violations(figures: Figures) -> list[str]:
    """Kernels on tensor cores multiply with HMMA, read with LDSM and, where rows are aligned, copy with LDGSTS."""
    found = []
    for name, kernel in figures.kernels.items():
        if kernel.tile is None:
            continue
        wanted = ("HMMA", "LDSM", "LDGSTS") if kernel.tensor else ("HMMA", "LDSM")
        for arch, machine in kernel.machine.items():
            if not machine.mix:
                continue
            code = machine.steady.mix if machine.steady else machine.mix
            found += [f"{name} on {arch}: no {opcode} in its main loop" for opcode in wanted if not code[opcode]]
    return found


def share(kernel: Kernel, arch: str = SHARE_ARCHITECTURE) -> float:
    """The kernel's share of tensor-core issue slots."""
    cycles = next(device.hmma_cycles for device in DEVICES.values() if device.architecture == arch)
    steady = kernel.machine[arch].steady
    return steady.tensor_share(cycles) if steady else 0.0


def required_share(kernel: Kernel) -> float | None:
    """What a kernel must reach; None where there is no requirement."""
    base = kernel.name.split("<")[0]
    if not kernel.tensor or kernel.tile is None or kernel.tile.selects or kernel.dtype != "bf16":
        return None
    return SHARES.get(base) if _DEPTH.get(base, 128) == kernel.tile.D else None


def share_violations(figures: Figures) -> list[str]:
    """The shares that are required of bfloat16 at D = 128."""
    found = []
    for base in SHARES:
        of_kind = [
            k for k in figures.kernels.values() if k.name.split("<")[0] == base and required_share(k) is not None
        ]
        if not of_kind:
            found.append(f"{base}: no bfloat16 kernel for D = {_DEPTH.get(base, 128)}")
        for kernel in of_kind:
            reached, least = share(kernel), required_share(kernel)
            if least is not None and reached < least:
                found.append(
                    f"{kernel.name} on {SHARE_ARCHITECTURE}: tensor-core share {reached:.1%}, required {least:.0%}"
                )
    return found
