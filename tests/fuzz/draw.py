"""What drawings are made of: sizes, dtypes, and tensors that lie in memory in any way that an op reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
T = TypeVar("T")


class Draw:
    """Hypothesis draws choices, so that it can make a failure smaller; torch's generator draws elements."""

    def __init__(self, data: Any) -> None:
        self._draw = data.draw
        self.generator = torch.Generator().manual_seed(self.number(0, 2**16))

    def one(self, *options: T) -> T:
        return self._draw(st.sampled_from(options))

    def number(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.one(False, True)

    def maybe(self, make: Callable[[], T]) -> T | None:
        return make() if self.flag() else None

    def size(self, least: int = 0) -> int:
        """None, one, small and odd, or beyond a tile."""
        return max(least, self.one(1, 0, 2, 3, 7, 33, 70))

    def dtype(self) -> torch.dtype:
        return self.one(F32, F64, BF16)

    def floats(self, *shape: int, dtype: torch.dtype = F32, strided: bool = False, scale: float = 1.0) -> Tensor:
        """Normal numbers; strided: contiguous, columns of wider rows, or dimensions in another order of storage."""
        x = (torch.randn(shape, generator=self.generator, dtype=F64) * scale).to(dtype)
        form = self.one("plain", "wide", "turned") if strided else "plain"
        if form == "wide" and shape:
            wide = torch.full((*shape[:-1], shape[-1] + 5), float("nan"), dtype=dtype)
            wide[..., 2 : 2 + shape[-1]] = x
            return wide[..., 2 : 2 + shape[-1]]
        if form == "turned" and len(shape) >= 3:
            return x.transpose(0, -2).contiguous().transpose(0, -2)
        return x

    def integers(self, *shape: int, below: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.randint(max(1, below), shape, generator=self.generator).to(dtype)

    def chosen(self, count: int, of: int) -> Tensor:
        """Different numbers below `of`, int64, in any order or increasing."""
        numbers = torch.randperm(of, generator=self.generator)[:count]
        return numbers.sort().values if self.flag() else numbers

    def cuts(self, total: int, parts: int) -> list[int]:
        """Borders of ragged parts of `total`, some empty: parts + 1 numbers from 0."""
        inner = torch.randint(total + 1, (max(0, parts - 1),), generator=self.generator).sort().values.tolist()
        return [0, *inner, total] if parts else [0]

    def lists(self, *shape: int, slots: int, keys: int) -> Tensor:
        """int32 [*shape, slots]: increasing numbers below `keys`, -1 behind the last."""
        order = torch.rand(*shape, max(1, keys), generator=self.generator).argsort(-1)[..., : min(slots, keys)]
        kept = torch.rand(order.shape, generator=self.generator) < 0.7
        found = torch.where(kept, order, keys).sort(-1).values
        found = torch.where(found < keys, found, -1)
        return torch.nn.functional.pad(found, (0, slots - found.shape[-1]), value=-1).int().contiguous()
