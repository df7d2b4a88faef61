"""Which dtypes an op takes, by device."""

from __future__ import annotations

import torch
from torch import Tensor

_CPU = (torch.float32, torch.float64, torch.bfloat16)
_CUDA = (torch.float32, torch.bfloat16)


def check_dtype(op: str, name: str, x: Tensor, *, half: bool) -> None:
    """Raises ValueError naming what is allowed. CUDA has no float64, and float16 where the op has it (`half`)."""
    allowed: tuple[torch.dtype, ...] = _CPU
    if x.device.type == "cuda":
        allowed = (*_CUDA, torch.float16) if half else _CUDA
    if x.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{op}: {name} is {x.dtype}; allowed: {names}")
