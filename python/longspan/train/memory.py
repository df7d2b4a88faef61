"""Peak memory of this process, as the operating system counts it.

On Linux the figure is `VmHWM` of /proc/self/status: the largest resident set (physical memory, shared
libraries and mapped weight files included) since the last reset; writing 5 to /proc/self/clear_refs resets
it, so that loading and evaluation before training do not count. Elsewhere it is getrusage's `ru_maxrss`,
which cannot be reset. With a GPU the peak of torch's CUDA allocator is reported as well.
"""

from __future__ import annotations

import ctypes
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")
_MEMINFO = Path("/proc/meminfo")
_M_MMAP_THRESHOLD = -3  # malloc.h
_RETURNED = 1 << 20


def reset_peak() -> bool:
    """Start a new measurement; False if this system only knows the peak since the process began."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return True


def peak_rss() -> int:
    """Largest resident set in bytes since the last reset that worked, or since the process began."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def return_freed() -> bool:
    """From now on this process gives every freed block of a MiB or more back to the system; False if it cannot.

    glibc keeps freed blocks of up to 32 MiB, which is faster (no new pages), and lets the resident set grow up to a
    third above what lives.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _RETURNED))


def available() -> int:
    """Bytes that a run may count on: nine tenths of what the GPU, or without one the system, has free now.

    The rest is for what a plan does not see: the interpreter, libraries and the allocator's rounding. Raises OSError
    where the system does not say.
    """
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0]) * 9 // 10
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024 * 9 // 10
    raise OSError("this system does not say how much memory is available; give a size")


def peak_cuda() -> int | None:
    """Largest number of bytes torch held on the current GPU since the last reset; None without a GPU."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
