"""Tensors that autograd keeps as a recipe: dropped after the forward, made again when the backward asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

Keep = Callable[[Sequence[Tensor]], None]


def keep_nothing(tensors: Sequence[Tensor]) -> None:
    """For a computation whose tensors autograd keeps as ever."""


@contextmanager
def dropped(make: Callable[[Keep], Any], source: Tensor) -> Iterator[Keep]:
    """A context in which autograd saves no storage that is given to what it yields.

    The backward calls ``make(keep)``, once and without gradients, which must keep the same values in the same strides
    and order; it draws the random numbers that it would have drawn when the context began. ``source`` is what ``make``
    reads, and must not be written in place until then.
    """
    recipe = _Recipe(make, source)
    with torch.autograd.graph.saved_tensors_hooks(recipe.pack, recipe.unpack):
        yield recipe.keep
    recipe.alive.clear()
    recipe.places.clear()


class _Recipe:
    # Nothing here may lead back to itself: a cycle would hold `source` until Python's collector comes by.
    def __init__(self, make: Callable[[Keep], Any], source: Tensor) -> None:
        self.make, self.source, self.version = make, source.detach(), source._version
        self.random_state, self.device_states = torch.get_rng_state(), get_device_states(source)
        self.places: dict[int, int] = {}  # storage -> number of the tensor that was kept
        self.alive: list[Tensor] = []  # inside the context: no other storage may come to lie where a known one was
        self.count = self.packed = self.unpacked = 0
        self.made: list[Tensor] | None = None

    def keep(self, tensors: Sequence[Tensor]) -> None:
        self.alive.extend(tensors)
        for x in tensors:
            if x.numel():
                self.places[x.untyped_storage()._cdata] = self.count
            self.count += 1

    def pack(self, x: Tensor) -> Any:
        place = self.places.get(x.untyped_storage()._cdata)
        if place is None:
            return x
        self.packed += 1
        return place, x.shape, x.stride(), x.storage_offset()

    def unpack(self, kept: Any) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        place, *view = kept
        if self.made is None:
            self.made = self._make_again()
        x = self.made[place].as_strided(*view)
        self.unpacked += 1
        if self.unpacked % self.packed == 0:  # a graph that is kept for another backward makes them once more
            self.made = None
        return x

    def _make_again(self) -> list[Tensor]:
        if self.source._version != self.version:
            raise RuntimeError(
                "memory.recompute: the input of a layer was changed in place between its forward and its backward"
            )
        made: list[Tensor] = []
        devices, states = self.device_states
        kind = self.source.device.type
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=kind):
            torch.set_rng_state(self.random_state)
            if devices:
                set_device_states(devices, states, device_type=kind)
            self.make(made.extend)
        return made
