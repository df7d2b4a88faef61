"""What a decoder layer saves, in host memory: copied away behind its forward, and back before its backward."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SMALLEST = 1 << 20  # bytes; what is smaller is not worth a copy of its own


class Mover(Protocol):
    """Copies flat tensors between a device and the host, both ways without waiting."""

    def away(self, x: Tensor) -> Any:
        """Start a copy of `x` [n] to the host."""

    def back(self, kept: Any) -> Any:
        """Start the copy back of what `away` returned."""

    def here(self, coming: Any) -> Tensor:
        """The tensor [n] on the device, of what `back` returned, safe to use in the order of its current stream."""


def refuse_host(device: str) -> None:
    """Raises ValueError where there is nothing to move, on the CPU."""
    if device != "cuda":
        raise ValueError(
            f"memory.offload cpu moves what layers save from a GPU to host memory, and this model runs on {device}; "
            "use memory.offload none, and memory.recompute to save memory there"
        )


class CudaMover:
    """Pinned host memory and a stream of its own, beside the one that computes."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_streams": {}}  # a copy of the model makes its own

    def away(self, x: Tensor) -> Any:
        """Copy on a stream that waits for what computes `x`; its memory is not handed out before the copy's end."""
        refuse_host(x.device.type)
        stream = self._stream(x.device)
        host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):
            host.copy_(x, non_blocking=True)
        x.record_stream(stream)
        return host, x.device

    def back(self, kept: Any) -> Any:
        """Copies on one stream follow each other: the way back waits for the way there."""
        host, device = kept
        stream = self._stream(device)
        with torch.cuda.stream(stream):
            x = host.to(device, non_blocking=True)
            done = stream.record_event()
        return x, done

    def here(self, coming: Any) -> Tensor:
        """Let the computing stream wait for the copy."""
        x, done = coming
        current = torch.cuda.current_stream(x.device)
        current.wait_event(done)
        x.record_stream(current)
        found: Tensor = x
        return found

    def _stream(self, device: torch.device) -> Any:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]


class Offload:
    """The offloading of one model: how tensors move, and the layer that ran last."""

    def __init__(self, mover: Mover) -> None:
        self.mover = mover
        self.last: weakref.ref[Shelf] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"mover": self.mover, "last": None}

    def shelf(self) -> Shelf:
        """For the next layer of a forward."""
        shelf = Shelf(self.mover, self.last)
        self.last = weakref.ref(shelf)
        return shelf


class View(NamedTuple):
    """A tensor by the number of the storage that it looks at."""

    place: int
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int


@dataclass
class _Place:
    """One storage: its copy on the host, how often it was saved, and in a backward the way back and uses to come."""

    kept: Any
    uses: int = 0
    coming: Any = None
    arrived: Tensor | None = None
    left: int = 0


class Shelf:
    """What one layer's forward saved, each storage once. A context in which autograd saves to it.

    The first tensor that the backward asks for starts the way back of all of this layer's and of those of the layer
    before, so that copies run beside products; a storage leaves the device again with its last use.
    """

    def __init__(self, mover: Mover, before: weakref.ref[Shelf] | None = None) -> None:
        self.mover, self.before = mover, before
        self.staying: set[int] = set()
        self.numbers: dict[Any, int] = {}  # storage, version and dtype -> number of its place
        self.alive: list[tuple[Tensor, int]] = []  # while saving: no other storage may come to lie there
        self.places: list[_Place] = []
        self.fetched = 0  # uses to come in the backward that fetched everything

    def __enter__(self) -> Shelf:
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)
        del self._hooks  # it refers back to this shelf
        changed = [tuple(x.shape) for x, version in self.alive if x._version != version]
        self.alive.clear()
        self.numbers.clear()
        self.staying.clear()
        if changed and error[0] is None:
            raise RuntimeError(f"memory.offload: a saved tensor of shape {changed[0]} was changed in place afterwards")

    def leave(self, tensors: Iterable[Tensor]) -> None:
        """These live on the device anyway: weights, and tables that all layers share."""
        self.staying.update(x.untyped_storage()._cdata for x in tensors)

    def pack(self, x: Tensor) -> Any:
        """What autograd keeps instead of `x`."""
        storage = x.untyped_storage()
        count, rest = divmod(storage.nbytes(), x.element_size())
        if storage.nbytes() < SMALLEST or rest or storage._cdata in self.staying:
            return x
        key = storage._cdata, x._version, x.dtype
        if key not in self.numbers:
            self.numbers[key] = len(self.places)
            self.alive.append((x, x._version))
            self.places.append(_Place(self.mover.away(x.detach().as_strided((count,), (1,), 0))))
        number = self.numbers[key]
        self.places[number].uses += 1
        return View(number, x.shape, x.stride(), int(x.storage_offset()))

    def unpack(self, kept: Any) -> Tensor:
        """The tensor of what `pack` returned, on its device."""
        if not isinstance(kept, View):
            found: Tensor = kept
            return found
        self.fetch()
        if self.before is not None and (before := self.before()) is not None:
            before.fetch()
        place = self.places[kept.place]
        if place.arrived is None:
            coming = self.mover.back(place.kept) if place.coming is None else place.coming
            place.coming, place.arrived, place.left = None, self.mover.here(coming), place.uses
            del coming
        x = place.arrived.as_strided(*kept[1:])
        place.left -= 1
        self.fetched -= 1
        if not place.left:
            place.arrived = None
        return x

    def fetch(self) -> None:
        """Start the way back of everything, once a backward."""
        if self.fetched > 0:
            return
        self.fetched = sum(place.uses for place in self.places)
        for place in self.places:
            if place.arrived is None and place.coming is None:
                place.coming = self.mover.back(place.kept)


def checkpointed(run: Callable[..., Tensor], *inputs: Tensor, shelf: Shelf | None) -> Tensor:
    """`run(*inputs)`, computed again in the backward; the inputs wait on the shelf, where there is one."""
    if shelf is None:
        out: Tensor = checkpoint(run, *inputs, use_reentrant=False)
        return out
    held = _Held(inputs)
    empty = inputs[0].new_empty(0)  # tells which device's random numbers are to be repeated
    out = checkpoint(lambda _: run(*held.take(shelf)), empty, use_reentrant=False)
    held.put_away(shelf)
    return out


class _Held:
    """Inputs of a checkpoint: themselves in its forward, copies from the shelf when it runs again."""

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        self.inputs: list[Any] = list(inputs)
        self.gradients: list[bool] | None = None

    def take(self, shelf: Shelf) -> list[Tensor]:
        if self.gradients is None:
            return self.inputs
        found = [shelf.unpack(x).detach() for x in self.inputs]
        return [x.requires_grad_(wanted) for x, wanted in zip(found, self.gradients, strict=True)]

    def put_away(self, shelf: Shelf) -> None:
        self.gradients = [x.requires_grad for x in self.inputs]
        self.inputs = [shelf.pack(x) for x in self.inputs]
