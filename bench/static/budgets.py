"""The committed budget of every kernel: what it may take at most, and what it must reach."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from bench.static.architectures import DEVICES
from bench.static.compile import nvcc_version
from bench.static.figures import Figures, Kernel
from bench.static.tools import ROOT

PATH = ROOT / "tests" / "cuda" / "budgets.json"
ARCHITECTURES = ("sm_80", "sm_90")
CYCLES = {device.architecture: device.hmma_cycles for device in DEVICES.values()}
AT_MOST = ("registers", "shared")
AT_LEAST = ("blocks", "tensor_share")


def figures_of(kernel: Kernel, arch: str) -> dict[str, float]:
    """Registers a thread, bytes of shared memory, resident blocks, and the tensor cores' share of the main loop."""
    machine = kernel.machine[arch]
    found: dict[str, float] = {
        "registers": machine.usage.registers,
        "shared": kernel.shared,
        "blocks": machine.occupancy.blocks,
    }
    if kernel.tensor and machine.steady:
        found["tensor_share"] = math.floor(machine.steady.tensor_share(CYCLES[arch]) * 100) / 100
    return found


def budget(figures: Figures) -> dict[str, Any]:
    """A budget that the figures just meet."""
    kernels = {
        name: {arch: figures_of(kernel, arch) for arch in ARCHITECTURES} for name, kernel in figures.kernels.items()
    }
    return {"nvcc": nvcc_version(), "kernels": kernels}


def write(figures: Figures, path: Path = PATH) -> None:
    """Makes the present figures the budget."""
    path.write_text(json.dumps(budget(figures), indent=1) + "\n", encoding="utf-8")


def read(path: Path = PATH) -> dict[str, Any]:
    """The committed budget."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def violations(figures: Figures, committed: dict[str, Any]) -> list[str]:
    """Every figure that is worse than its budget, and kernels that only one side knows."""
    known = committed["kernels"]
    found = [
        f"{name}: no budget; run `python -m bench.static --update`" for name in figures.kernels if name not in known
    ]
    found += [f"{name}: has a budget, but is not compiled any more" for name in known if name not in figures.kernels]
    for name, kernel in figures.kernels.items():
        for arch, allowed in known.get(name, {}).items():
            actual = figures_of(kernel, arch)
            for figure, limit in allowed.items():
                value = actual.get(figure, 0)
                if (figure in AT_MOST and value > limit) or (figure in AT_LEAST and value < limit):
                    found.append(f"{name} on {arch}: {figure} {value:g}, budget {limit:g} (nvcc {committed['nvcc']})")
    return found
