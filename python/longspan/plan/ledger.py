"""Every storage's life during a dry run: when it was made and freed, how large it is, what it belongs to."""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from longspan.ops.scratch import Machine, scratch_bytes

# What is live at a moment, by name of the part.
WEIGHTS, GRADIENTS, OPTIMIZER, INPUTS = "weights", "gradients", "optimizer", "inputs"
TRANSIENT, SCRATCH = "transient", "scratch"
HOST = "host"  # beside the others: what offloading keeps in host memory
HELD = (WEIGHTS, GRADIENTS, OPTIMIZER, INPUTS)
_FOREVER = 1 << 60
# Index arithmetic on real tensors is carried out up to this many elements; beyond, it has shapes only.
_LARGEST_REAL = 1 << 24


@dataclass
class Life:
    """One storage: bytes, first and last tick, part, whether the forward made it and whether it outlived it."""

    bytes: int
    part: str
    born: int
    forward: bool
    died: int = _FOREVER
    kept: bool = False

    def label(self) -> str:
        """The part under which a moment counts it."""
        return self.part if self.part in (*HELD, HOST) or self.kept else TRANSIENT


class Ledger(TorchDispatchMode):
    """Watches the ops of this thread. Fake tensors cost no memory and are counted as if they had some.

    part: names what makes a storage, of (op, arguments, output's index). Ticks count ops; what an op frees after it ran
    still lives at its tick. `mark` starts a segment, a stretch of ticks whose peak is reported on its own.
    """

    def __init__(self, machine: Machine, part: Callable[[str, Any, int], str], mode: FakeTensorMode) -> None:
        super().__init__()
        self.machine, self.part, self.mode = machine, part, mode
        self.tick, self.forward = 0, False
        self.lives: list[Life] = []
        self.scratch: dict[int, int] = {}
        self.marks: list[tuple[int, str]] = [(0, "before")]
        self._open: dict[int, tuple[Life, Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.tick += 1
        args, kwargs = self._without_values(args, kwargs)
        out = func(*args, **kwargs)
        name = func.name()
        taken = scratch_bytes(name, args, self.machine)
        if taken:
            self.scratch[self.tick] = taken
        for index, tensor in enumerate(tree_leaves(out)):
            if isinstance(tensor, Tensor):
                self._open_life(tensor, partial(self.part, name, args, index))
        return out

    def _without_values(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        if not tensors or any(isinstance(x, FakeTensor) for x in tensors):
            return args, kwargs
        try:
            large = math.prod(torch.broadcast_shapes(*(x.shape for x in tensors))) > _LARGEST_REAL
        except RuntimeError:
            large = False
        if not large:
            return args, kwargs
        found: tuple[Any, Any] = tree_map_only(Tensor, self.mode.from_tensor, (args, kwargs))
        return found

    def _open_life(self, tensor: Tensor, part: Callable[[], str]) -> Life | None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._open:
            return self._open[key][0]
        life = Life(storage.nbytes(), part(), self.tick, self.forward)
        self.lives.append(life)

        def close(_: Any) -> None:
            life.died = self.tick
            self._open.pop(key, None)

        self._open[key] = (life, weakref.ref(storage, close))
        return life

    def hold(self, tensors: Iterable[Tensor], part: str) -> None:
        """Count these from now on, under a part that stays theirs."""
        for tensor in tensors:
            life = self._open_life(tensor, lambda: part)
            if life is not None:
                life.part = part

    def on_host(self, owner: Any, count: int) -> None:
        """Count `count` bytes of host memory for as long as `owner` lives."""
        life = Life(count, HOST, self.tick, self.forward)
        self.lives.append(life)

        def close() -> None:
            life.died = self.tick

        weakref.finalize(owner, close)

    def mark(self, segment: str) -> None:
        """What follows belongs to `segment`."""
        self.marks.append((self.tick + 1, segment))

    @contextmanager
    def running_forward(self) -> Iterator[None]:
        """Inside, storages are the forward's; those that are alive at the end are kept for the backward."""
        self.forward, start = True, len(self.lives)
        try:
            yield
        finally:
            self.forward = False
            for life in self.lives[start:]:
                life.kept = life.died == _FOREVER

    def begin(self) -> None:
        """Forget the ticks before now: peaks are looked for from here on."""
        self.lives = [life for life in self.lives if life.died == _FOREVER]
        self.scratch.clear()
        self.marks = [(self.tick + 1, "before")]

    def peaks(self) -> dict[str, Counter[str]]:
        """By segment, what is live at its largest moment, by part; a segment that is marked twice counts as one."""
        first = self.marks[0][0]
        count = self.tick - first + 1
        if count <= 0:
            return {}
        steps = [0] * (count + 1)
        for life in self.lives:
            if life.died >= first and life.part != HOST:
                steps[max(life.born, first) - first] += life.bytes
                if life.died < self.tick:
                    steps[life.died + 1 - first] -= life.bytes
        live, total = [], 0
        for index in range(count):
            total += steps[index]
            live.append(total + self.scratch.get(first + index, 0))
        found: dict[str, tuple[int, int]] = {}
        ends = [tick for tick, _ in self.marks[1:]] + [self.tick + 1]
        for (start, segment), end in zip(self.marks, ends, strict=True):
            for tick in range(start, min(end, self.tick + 1)):
                if live[tick - first] > found.get(segment, (-1, 0))[0]:
                    found[segment] = live[tick - first], tick
        return {segment: self._moment(tick) for segment, (_, tick) in found.items()}

    def _moment(self, tick: int) -> Counter[str]:
        live: Counter[str] = Counter({SCRATCH: self.scratch.get(tick, 0)})
        for life in self.lives:
            if life.born <= tick <= life.died:
                live[life.label()] += life.bytes
        return live
