"""A decoder layer on some rows of the stream."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.patch.layers.layer import Layer
from longspan.patch.layers.recompute import Keep
from longspan.patch.layers.rotation import Rotation
from longspan.patch.tokens.select import row_norms


@dataclass
class RowsLayer(Layer):
    """The rows `rows` of the B*T of a batch, one row of tokens [1,K] here, at their own positions.

    placed: keys and values [1,K,M,D] of all rows, which these rows' stand in as what may be differentiated. recorded: a
    run of the projections on all rows, whose results are taken. branch: what the feed-forward gives, if that is known.
    """

    rows: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    stream_batch: int = 1
    placed: tuple[Tensor, Tensor] | None = None
    recorded: ops.Recording | None = None
    branch: Tensor | None = None

    @classmethod
    def of(cls, whole: Layer, rows: Tensor, **options: Any) -> RowsLayer:
        """For a call on all rows."""
        return cls(whole.layer, whole.state, whole.recompute, whole.shelf, 1, rows, whole.batch, **options)

    def rotation(self, tables: tuple[Tensor, Tensor], dtype: torch.dtype) -> Rotation:
        """Original positions, whatever the place."""
        every = self.state.rotations.of(*tables, self.stream_batch, dtype)
        return replace(every, positions=every.positions[self.rows])

    def turns(self, tables: Any) -> Any:
        """cos and sin [1,K,.] of these rows."""
        batch = self.stream_batch
        return tuple(x.expand(batch, -1, -1).flatten(0, 1)[None, self.rows] for x in tables)

    def project(self, rotation: Rotation | None, rows: Tensor, keep: Keep) -> tuple[Tensor, ...]:
        """From the recorded run, the first time."""
        recorded, self.recorded = self.recorded, None
        if recorded is None:
            return super().project(rotation, rows, keep)
        with recorded.replay(self.rows):
            return super().project(rotation, rows, keep)

    def heads(self, attention: nn.Module, made: tuple[Tensor, ...], tables: Any) -> tuple[Tensor, Tensor, Tensor]:
        """With the keys and values of all rows, where they are placed."""
        q, k, v = super().heads(attention, made, tables)
        if self.placed is None:
            return q, k, v
        keys, values = self.placed
        return q, ops.place_rows(k, self.rows, keys, 2), ops.place_rows(v, self.rows, values, 2)

    def known(self) -> Tensor | None:
        """The feed-forward's result."""
        return self.branch


@dataclass
class WholeLayer(Layer):
    """All rows, looked at: keys and values as the engine gets them, and the norms of the feed-forward's hidden rows."""

    kv: tuple[Tensor, ...] = ()
    measured: bool = False
    norms: list[Tensor] = field(default_factory=list)

    @classmethod
    def of(cls, call: Layer, **options: Any) -> WholeLayer:
        """For a call of a layer, without its recomputation."""
        return cls(call.layer, call.state, "none", None, call.batch, **options)

    def heads(self, attention: nn.Module, made: tuple[Tensor, ...], tables: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Remembered: [1,K,M,D], in storage of their own."""
        q, k, v = super().heads(attention, made, tables)
        self.kv = tuple(_one_row(x, own=self.state.family.packed is None) for x in (k, v))
        return q, k, v

    def activate(self, wide: tuple[Tensor, ...]) -> Tensor:
        """Measured where asked for."""
        hidden = super().activate(wide)
        if self.measured:
            self.norms.append(row_norms(hidden))
        return hidden


def _one_row(x: Tensor, own: bool) -> Tensor:
    """[B,K,T,D] as [1,K,B*T,D] that holds no other tensor's storage alive."""
    rows = x.transpose(1, 2).flatten(0, 1)
    return (rows if own else rows.contiguous()).transpose(0, 1)[None]
