"""Tensors that autograd keeps as a recipe: dropped after the forward, made again when the backward asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor


def dropped(
    make: Callable[[], Sequence[Tensor]], outputs: Sequence[Tensor], source: Tensor
) -> AbstractContextManager[Any]:
    """Inside the context, autograd saves no storage of ``outputs`` but calls ``make`` for them, once, in the backward.

    ``make`` runs without gradients and must give the same values in the same strides; ``source`` is what it reads, and
    must not be written in place until then.
    """
    recipe = _Recipe(make, outputs, source)
    return torch.autograd.graph.saved_tensors_hooks(recipe.pack, recipe.unpack)


class _Recipe:
    def __init__(self, make: Callable[[], Sequence[Tensor]], outputs: Sequence[Tensor], source: Tensor) -> None:
        self.make, self.source, self.version = make, source, source._version
        self.places = {x.untyped_storage().data_ptr(): i for i, x in enumerate(outputs) if x.numel()}
        self.made: list[Tensor] | None = None
        self.packed = self.unpacked = 0

    def pack(self, x: Tensor) -> Any:
        place = self.places.get(x.untyped_storage().data_ptr())
        if place is None:
            return x
        self.packed += 1
        return place, x.shape, x.stride(), x.storage_offset()

    def unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        place, *view = kept
        if self.made is None:
            if self.source._version != self.version:
                raise RuntimeError(
                    "memory.recompute: the input of a layer was changed in place between its forward and its backward"
                )
            with torch.no_grad():
                self.made = list(self.make())
        x = self.made[place].as_strided(*view)
        self.unpacked += 1
        if self.unpacked % self.packed == 0:  # a graph that is kept for another backward makes them once more
            self.made = None
        return x
