"""A stand-in for the host, so that offloading runs and is counted without a GPU."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.patch.layers import STATE, Offload


@dataclass(eq=False)
class _Kept:
    values: Any
    dtype: torch.dtype
    number: int


class Elsewhere:
    """A mover whose host is NumPy's memory, which torch's allocator does not count; it notes what it does."""

    def __init__(self) -> None:
        self.log: list[tuple[str, int]] = []
        self.sizes: list[int] = []
        self.held: weakref.WeakSet[_Kept] = weakref.WeakSet()
        self.peak = 0

    def away(self, x: Tensor) -> _Kept:
        """Copy `x` to NumPy."""
        assert x.dim() == 1
        assert x.is_contiguous()
        kept = _Kept(x.view(torch.uint8).numpy().copy(), x.dtype, len(self.sizes))
        self.sizes.append(kept.values.nbytes)
        self.log.append(("away", kept.number))
        self.held.add(kept)
        self.peak = max(self.peak, sum(one.values.nbytes for one in self.held))
        return kept

    def back(self, kept: _Kept) -> tuple[_Kept, Tensor]:
        """A copy that torch's allocator counts."""
        self.log.append(("back", kept.number))
        x = torch.empty(kept.values.nbytes, dtype=torch.uint8)
        return kept, x.copy_(torch.from_numpy(kept.values)).view(kept.dtype)

    def here(self, coming: tuple[_Kept, Tensor]) -> Tensor:
        """What `back` copied."""
        kept, x = coming
        self.log.append(("here", kept.number))
        return x


def moved(model: Any, mover: Elsewhere) -> Any:
    """The patched model, offloading to `mover`."""
    shared = Offload(mover)
    for module in model.modules():
        if STATE in module.__dict__:
            getattr(module, STATE).offload = shared
    return model
