"""Arrays on their way into the emulation and back."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32", torch.float64: "float64"}


def bits(x: Tensor, padding: int = 0) -> np.ndarray:
    """The tensor with `padding` further columns of nan; bfloat16 as its bits."""
    rows = torch.nn.functional.pad(x.detach(), (0, padding), value=float("nan")).contiguous()
    return rows.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else rows.numpy()


def tensor(array: np.ndarray, dtype: torch.dtype, columns: int | None = None) -> Tensor:
    """What `bits` made, its first `columns` columns."""
    rows = torch.from_numpy(array.view(np.int16)).view(dtype) if dtype == torch.bfloat16 else torch.from_numpy(array)
    return rows if columns is None else rows[..., :columns]
