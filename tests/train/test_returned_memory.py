"""Freed memory goes back to the system where a run is held to a budget."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from pathlib import Path
from longspan.train import memory

if sys.argv[1] == "returned":
    assert memory.return_freed()

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

block = 4 << 20
torch.ones(block)  # 16 MiB: glibc's threshold rises to what was freed
before = resident()
blocks = [torch.ones(block // 4) for _ in range(32)]
del blocks[::2]
print((resident() - before) / block)
"""


@pytest.mark.parametrize("mode", ["returned", "kept"])
def test_freed_blocks(mode: str) -> None:
    """Every other one of 32 blocks of 4 MiB is freed: 16 are left, or the heap keeps nearly all."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
    blocks = float(done.stdout)
    assert blocks == pytest.approx(16, abs=1) if mode == "returned" else blocks > 24
