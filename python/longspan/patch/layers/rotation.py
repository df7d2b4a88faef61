"""transformers' cos and sin as the tables and positions of ops.rope, made once a forward for all layers."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rotation:
    """cos, sin [P,N] float32 (float64), positions [B*T] that point into them."""

    cos: Tensor
    sin: Tensor
    positions: Tensor


class Rotations:
    """The last tables that were asked for; forgotten with the tensors they come from."""

    def __init__(self) -> None:
        self._source: Any = None
        self._made: Rotation | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Rotations:
        return Rotations()

    def of(self, cos: Tensor, sin: Tensor, batch: int, dtype: torch.dtype) -> Rotation:
        """cos, sin: [1 or B, T, 2 N], both halves alike, as transformers gives them to every layer."""
        if torch.compiler.is_compiling():
            return _make(cos, sin, batch, dtype)
        if self._source is None or self._source() is not cos or self._made is None:
            self._made = _make(cos, sin, batch, dtype)
            self._source = weakref.ref(cos, self._forget)
        return self._made

    def _forget(self, source: Any) -> None:
        if source is self._source:
            self._source = self._made = None


def _make(cos: Tensor, sin: Tensor, batch: int, dtype: torch.dtype) -> Rotation:
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rows, length, columns = cos.shape
    cos, sin = (x.detach()[..., : columns // 2].reshape(rows * length, -1).to(wide).contiguous() for x in (cos, sin))
    positions = torch.arange(rows * length, device=cos.device)
    return Rotation(cos, sin, positions.repeat(batch) if rows == 1 else positions)
