"""What this machine can run of the tests: GPUs, instruction sets, the aarch64 emulator."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

AARCH64_TOOLS = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")
INSTALL_AARCH64 = "apt-get install g++-aarch64-linux-gnu qemu-user-static"
# The marks that Linux shows for what an instruction set needs; baseline needs nothing more.
X86_FLAGS = {"x86-64-v3": {"avx2", "fma", "bmi2"}, "x86-64-v4": {"avx512f", "avx512vl", "avx512bw", "avx512dq"}}


def instruction_sets() -> list[str]:
    """The instruction sets of our kernels that this machine runs, as LONGSPAN_ISA names them."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    flags = set(next((line.split(":")[1] for line in text.splitlines() if line.startswith("flags")), "").split())
    return ["baseline", *(name for name, needed in X86_FLAGS.items() if needed <= flags)]


def missing_aarch64_tools() -> list[str]:
    """The programs of the aarch64 test that are not installed."""
    return [tool for tool in AARCH64_TOOLS if shutil.which(tool) is None]


def coverage_lines() -> list[str]:
    """One line for each device or instruction set: whether its tests can run on this machine."""
    here = instruction_sets()
    lines = [f"cuda: {torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU here'}"]
    lines += [f"{name}: {'here' if name in here else 'not on this machine'}" for name in ("baseline", *X86_FLAGS)]
    missing = missing_aarch64_tools()
    state = f"not available here, no {', '.join(missing)} ({INSTALL_AARCH64})" if missing else "here, emulated"
    return [*lines, f"aarch64: {state}"]
