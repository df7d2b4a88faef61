"""A computation on all rows whose gradient is wanted for some of them: run it, then run it again on those rows with
every product taken from the first run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longspan.ops._rows import check_distinct

_HEADS_FIRST = frozenset(("attention_fwd", "rope"))
_IN_PLACE = frozenset(("rope_",))


class Recording(TorchDispatchMode):
    """Inside it, a computation on M rows runs as ever; results of longspan's ops are remembered.

    `replay(rows)` is then a context in which the same computation on the rows `rows` alone, in the same order, takes
    those results at its rows instead of computing them; autograd saves what it would have saved for these rows. Batches
    are flattened: what was [B,H,T,D] becomes [1,H,K,D]. Torch's own ops are computed again, on these rows. Random
    numbers must not be drawn.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.results: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if _is_remembered(func):
            self.results.append((func, None if _name(func) in _IN_PLACE else out))
        return out

    @contextmanager
    def replay(self, rows: Tensor) -> Iterator[None]:
        """Takes what was remembered, in order. Raises RuntimeError where the computation is another one."""
        mode = _Replay(self, rows)
        with mode:
            yield
        if self.results:
            raise RuntimeError(f"replay: {len(self.results)} results of the computation on all rows were not taken")


class _Replay(TorchDispatchMode):
    def __init__(self, recording: Recording, rows: Tensor) -> None:
        super().__init__()
        self.recording, self.rows = recording, rows
        self.picked: list[Tensor] = []  # as they are after all that was written to them in place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _is_remembered(func):
            return func(*args, **(kwargs or {}))
        results = self.recording.results
        if not results or results[0][0] is not func:
            expected = results[0][0] if results else "nothing"
            raise RuntimeError(f"replay: the computation calls {func} where it called {expected} on all rows")
        _, out = results.pop(0)
        if _name(func) in _IN_PLACE:
            known = {x.untyped_storage()._cdata for x in self.picked}
            return None if args[0].untyped_storage()._cdata in known else func(*args, **(kwargs or {}))
        pick = self._pick_heads if _name(func) in _HEADS_FIRST else self._pick
        found = _each(out, pick)
        self.picked += [x for x in tree_leaves(found) if isinstance(x, Tensor)]
        return found

    def _pick(self, x: Tensor) -> Tensor:
        """[M n, ...] -> [K n, ...]: n results a row."""
        size = self.recording.size
        if x.dim() == 0 or x.shape[0] == 0:
            return x
        if x.shape[0] % size:
            raise RuntimeError(f"replay: a result of shape {tuple(x.shape)} does not belong to {size} rows")
        rows = x.reshape(size, x.shape[0] // size, *x.shape[1:])
        return rows.index_select(0, self.rows).flatten(0, 1)

    def _pick_heads(self, x: Tensor) -> Tensor:
        """[B,H,T,...] -> [1,H,K,...], heads behind tokens in memory where there is a last dimension."""
        rows = x.transpose(1, 2).flatten(0, 1).index_select(0, self.rows)
        picked = rows.transpose(0, 1)[None]
        return picked if x.dim() == 4 else picked.contiguous()


def _name(func: Any) -> str:
    return str(func._schema.name).rpartition("::")[2] if func.namespace == "longspan" else ""


def _is_remembered(func: Any) -> bool:
    return bool(func.namespace == "longspan")


def _each(out: Any, pick: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(out, Tensor):
        return pick(out)
    if isinstance(out, list | tuple):
        return type(out)(_each(x, pick) for x in out)
    return out


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, full: tuple[Tensor], dim: int) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.dim = dim
        return full[0]

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None, None]:
        return dy.index_select(ctx.dim, ctx.saved_tensors[0]), None, None, None


def place_rows(x: Tensor, rows: Tensor, full: Tensor, dim: int = 0) -> Tensor:
    """`full`, whose entries `rows` along `dim` are x: its values, the gradient of those entries to x, none to others.

    What the stop-gradient of all other rows means. No copy is made of `full`, which must have no graph. Raises
    ValueError for a `full` with a graph.
    """
    if full.requires_grad:
        raise ValueError("place_rows: full must be computed without a graph")
    if not -full.dim() <= dim < full.dim():
        raise ValueError(f"place_rows: dim is {dim}; full has {full.dim()} dimensions")
    wanted = list(full.shape)
    wanted[dim] = rows.numel()
    if rows.dim() != 1 or rows.dtype != torch.int64 or rows.device != full.device:
        raise ValueError(
            f"place_rows: rows is {rows.dtype} {tuple(rows.shape)} on {rows.device}; it must be int64 [K] on "
            f"{full.device}"
        )
    if list(x.shape) != wanted or x.dtype != full.dtype or x.device != full.device:
        raise ValueError(
            f"place_rows: x is {x.dtype} {tuple(x.shape)} on {x.device}; it must be {full.dtype} {tuple(wanted)} on "
            f"{full.device}, entries of full"
        )
    check_distinct("place_rows: rows", rows, full.shape[dim])
    out: Tensor = _Place.apply(x, rows, (full,), dim)
    return out
