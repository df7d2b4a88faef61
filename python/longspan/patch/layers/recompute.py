"""Tensors that autograd keeps as a recipe: dropped after the forward, made again when the backward asks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

from longspan.patch.layers.offload import Shelf, View

Keep = Callable[[Sequence[Tensor]], None]


def keep_nothing(tensors: Sequence[Tensor]) -> None:
    """For a computation whose tensors autograd keeps as ever."""


@contextmanager
def dropped(make: Callable[[Tensor, Keep], Any], source: Tensor, shelf: Shelf | None = None) -> Iterator[Keep]:
    """A context in which autograd saves no storage that is given to what it yields.

    The backward calls ``make(source, keep)``, once and without gradients, which must keep the same values in the same
    strides and order; it draws the random numbers that it would have drawn when the context began. ``source`` must not
    be written in place until then. What is not dropped, and ``source``, are saved to ``shelf`` where there is one.
    """
    recipe = _Recipe(make, source, shelf)
    with torch.autograd.graph.saved_tensors_hooks(recipe.pack, recipe.unpack):
        yield recipe.keep
    recipe.alive.clear()
    recipe.places.clear()


class _Made(View):
    """Of what `keep` was given."""


class _Recipe:
    # Nothing here may lead back to itself: a cycle would hold `source` until Python's collector comes by.
    def __init__(self, make: Callable[[Tensor, Keep], Any], source: Tensor, shelf: Shelf | None) -> None:
        self.make, self.shelf, self.kind = make, shelf, source.device.type
        self.source: Any = source.detach() if shelf is None else shelf.pack(source.detach())
        self.version = source._version
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
            return x if self.shelf is None else self.shelf.pack(x)
        self.packed += 1
        return _Made(place, x.shape, x.stride(), int(x.storage_offset()))

    def unpack(self, kept: Any) -> Tensor:
        if not isinstance(kept, _Made):
            saved: Tensor = kept if self.shelf is None else self.shelf.unpack(kept)
            return saved
        if self.made is None:
            self.made = self._make_again()
        x = self.made[kept.place].as_strided(*kept[1:])
        self.unpacked += 1
        if self.unpacked % self.packed == 0:  # a graph that is kept for another backward makes them once more
            self.made = None
        return x

    def _make_again(self) -> list[Tensor]:
        source = self.source if self.shelf is None else self.shelf.unpack(self.source)
        if self.shelf is None and source._version != self.version:
            raise RuntimeError(
                "memory.recompute: the input of a layer was changed in place between its forward and its backward"
            )
        made: list[Tensor] = []
        devices, states = self.device_states
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=self.kind):
            torch.set_rng_state(self.random_state)
            if devices:
                set_device_states(devices, states, device_type=self.kind)
            self.make(source, made.extend)
        return made
