"""A layer on all tokens of which nothing but its input is kept, until the gradient says which rows matter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from longspan import ops
from longspan.patch.layers import parts
from longspan.patch.layers.layer import Layer
from longspan.patch.layers.recompute import keep_nothing
from longspan.patch.tokens import select
from longspan.patch.tokens.rows import RowsLayer, WholeLayer
from longspan.patch.tokens.stream import Stream

if TYPE_CHECKING:
    from longspan.patch.tokens.layer import KeptLayer


def differentiate(
    call: KeptLayer, rows: Tensor, given: dict[str, Any], stream: Stream, *, feed_forward: bool
) -> Tensor:
    """The layer (without feed_forward its attention branch) of rows [M,C]; the gradient goes through chosen rows.

    In the backward keys and values of all rows are made again, and the kept rows run once more.
    """
    parameters = [p for p in call.layer.parameters() if p.requires_grad]
    out: Tensor = _Late.apply(_Call(call, given, stream, feed_forward, _Autocast.now(rows)), rows, *parameters)
    return out


@dataclass
class _Autocast:
    kind: str
    enabled: bool
    dtype: torch.dtype

    @classmethod
    def now(cls, x: Tensor) -> _Autocast:
        kind = x.device.type
        return cls(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))

    @contextmanager
    def again(self) -> Iterator[None]:
        with torch.autocast(self.kind, dtype=self.dtype, enabled=self.enabled):
            yield


@dataclass
class _Call:
    call: KeptLayer
    given: dict[str, Any]
    stream: Stream
    feed_forward: bool
    autocast: _Autocast

    def whole(self, rows: Tensor) -> Tensor:
        whole = Layer(self.call.layer, self.call.state, "none", None, self.call.batch)
        middle = whole.attention(rows, dict(self.given))
        if not self.feed_forward:
            return middle
        return whole.feed_forward(rows if whole.parallel else middle, middle)

    def part(self, rows: Tensor, entered: Tensor, kept: Tensor) -> Tensor:
        """The rows `kept`, entered as [K,C], with their graph; `rows` [M,C] is the layer's input."""
        call, whole = self.call, WholeLayer.of(self.call)
        tables = self.given.get("position_embeddings")
        with torch.no_grad(), ops.Recording(len(rows)) as recording:
            made = whole.project(whole.rotation_of(tables, rows.dtype), rows, keep_nothing)
            whole.heads(parts.attribute(call.layer, call.state.family.attention), made, tables)
        del made
        part = RowsLayer.of(call, kept, placed=whole.kv, recorded=recording)
        part.recompute, part.shelf = "none", None
        middle = part.attention(entered, self.stream.given(self.given, kept, all_keys=True))
        if not self.feed_forward:
            return middle
        return part.feed_forward(entered if part.parallel else middle, middle)


class _Late(Function):
    @staticmethod
    def forward(ctx: Any, call: _Call, rows: Tensor, *parameters: Tensor) -> Tensor:
        ctx.call, ctx.parameters = call, parameters
        ctx.save_for_backward(rows)
        return call.whole(rows)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("tokens.lemo is differentiable once; its gradient has no graph (create_graph=True)")
        call: _Call = ctx.call
        (rows,) = ctx.saved_tensors
        tokens = call.call.tokens
        scores = select.score_late(tokens, dy, call.stream)
        kept = select.keep(tokens, scores, call.stream).rows
        entered = rows.index_select(0, kept).requires_grad_()
        with torch.enable_grad(), call.autocast.again():
            y = call.part(rows, entered, kept)
        inputs = (entered, *ctx.parameters)
        found = torch.autograd.grad(y, inputs, dy.index_select(0, kept), allow_unused=True)
        dx = None
        if ctx.needs_input_grad[1]:
            dx = dy.clone(memory_format=torch.contiguous_format).index_copy_(0, kept, found[0])
        return None, dx, *found[1:]
