"""Tensors that autograd keeps as a recipe: dropped after the forward, made again when the backward asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import get_device_states, set_device_states

Keep = Callable[[Sequence[Tensor]], None]


def keep_nothing(tensors: Sequence[Tensor]) -> None:
    """For a computation whose tensors autograd keeps as ever."""


class Dropped(torch.autograd.graph.saved_tensors_hooks):
    """A context in which autograd saves no storage that was given to :meth:`add`.

    The backward calls ``make(add)``, once and without gradients, which must add the same values in the same strides and
    order; it draws the random numbers that it would have drawn when the context was made. ``source`` is what ``make``
    reads, and must not be written in place until then.
    """

    def __init__(self, make: Callable[[Keep], Any], source: Tensor) -> None:
        super().__init__(self._pack, self._unpack)
        self.make, self.source, self.version = make, source, source._version
        self.random_state, self.device_states = torch.get_rng_state(), get_device_states(source)
        self.places: dict[int, int] = {}
        self.alive: list[Tensor] = []  # inside the context: no other tensor may come to lie at an address in places
        self.count = self.packed = self.unpacked = 0
        self.made: list[Tensor] | None = None

    def add(self, tensors: Sequence[Tensor]) -> None:
        """These tensors' storages are dropped when the context ends."""
        self.alive.extend(tensors)
        for x in tensors:
            if x.numel():
                self.places[x.untyped_storage().data_ptr()] = self.count
            self.count += 1

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.alive.clear()
        self.places.clear()

    def _pack(self, x: Tensor) -> Any:
        place = self.places.get(x.untyped_storage().data_ptr())
        if place is None:
            return x
        self.packed += 1
        return place, x.shape, x.stride(), x.storage_offset()

    def _unpack(self, kept: Any) -> Tensor:
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
