"""Live bytes as a measurement: what torch's allocator handed out and got back, also inside an op.

>>> with measure() as m:
...     loss = model(batch).loss
...     loss.backward()
>>> m.peak_bytes, m.end_bytes

The figures come from torch's own allocator events (`profile_memory`), so memory that an op takes and returns inside
itself counts, which a counter of dispatched tensors does not see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.autograd.profiler import profile


class Measurement:
    """Live bytes of CPU tensors that were allocated since the measurement began.

    peak_bytes: the largest sum of live allocations, end_bytes: the sum at the end, both in bytes as requested from the
    allocator (without its alignment). Tensors that lived before do not count, not even when they are freed inside.
    Storage that a library takes with its own malloc is not torch's and is not seen, nor are other Python threads.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.end_bytes = 0
        self._live: dict[int, int] = {}

    def _feed(self, events: Iterable[tuple[int, int]]) -> None:
        for address, size in events:
            if size > 0:
                self.end_bytes += size - self._live.pop(address, 0)
                self._live[address] = size
            else:
                self.end_bytes -= self._live.pop(address, 0)
            self.peak_bytes = max(self.peak_bytes, self.end_bytes)


class measure:
    """Context manager that yields a `Measurement`; may be nested, and each level counts from its own start.

    Raises RuntimeError when another torch profiler already runs: the two would mix their events.
    """

    _stack: list[Measurement] = []  # noqa: RUF012 - one profiler a process, shared by the nested measurements
    _session: profile | None = None

    def __enter__(self) -> Measurement:
        measure._pause()
        self.measurement = Measurement()
        measure._stack.append(self.measurement)
        try:
            measure._resume()
        except BaseException:
            measure._stack.pop()
            raise
        return self.measurement

    def __exit__(self, *error: object) -> None:
        measure._pause()
        measure._stack.remove(self.measurement)
        measure._resume()

    @classmethod
    def _pause(cls) -> None:
        """Stops the profiler and hands its events to every open measurement."""
        if cls._session is None:
            return
        session, cls._session = cls._session, None
        session.__exit__(None, None, None)
        events = list(_events(session))
        for measurement in cls._stack:
            measurement._feed(events)

    @classmethod
    def _resume(cls) -> None:
        if not cls._stack:
            return
        if torch.autograd.profiler._is_profiler_enabled:
            raise RuntimeError("longspan.memory.measure: another torch profiler is running; stop it first")
        session = profile(use_cpu=True, profile_memory=True)
        session.__enter__()
        cls._session = session


def _events(session: profile) -> Iterator[tuple[int, int]]:
    """(address, bytes) of each CPU allocation (positive) and release (negative), in time order."""
    assert session.kineto_results is not None
    found: list[tuple[int, int, int]] = []
    todo: list[Any] = list(session.kineto_results.experimental_event_tree())
    while todo:
        event = todo.pop()
        todo += event.children
        fields = event.extra_fields
        if event.tag.name == "Allocation" and fields.device.type == "cpu":
            found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    found.sort(key=lambda item: item[0])
    return ((address, size) for _, address, size in found)
