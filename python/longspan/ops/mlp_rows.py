"""A feed-forward branch for some rows of the stream: others go around it, or are computed without a gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from longspan.ops._feed_forward import check_branch, hidden_of
from longspan.ops.kept_rows import KeptRows
from longspan.ops.lora import Projection, norm_lora_linear
from longspan.ops.norm import Norm
from longspan.ops.replay import Recording


def mlp_skip(
    x: Tensor,
    rows: Tensor,
    up: Sequence[Projection],
    down: Projection,
    norm: Norm | None = None,
    *,
    activation: str,
    packed: bool = False,
) -> Tensor:
    """x [M,C] with x + down(act(gate) * up) in its rows `rows` (int64 [K], different from each other).

    Other rows are x's, and their gradient passes, bit for bit. up, down, norm, activation, packed: as in `segment_mlp`.
    Saved: of the K rows what these ops save. Raises ValueError for what does not fit. Source: LeMo (Wang et al. 2025).
    """
    join = KeptRows(rows)
    entered = join.enter(x)
    return join.leave(x, _branch(entered, up, down, norm, activation, packed))


def mlp_rows(
    x: Tensor,
    rows: Tensor,
    up: Sequence[Projection],
    down: Projection,
    norm: Norm | None = None,
    *,
    activation: str,
    packed: bool = False,
) -> Tensor:
    """x + down(act(gate) * up) of all rows [M,C], bit for bit; the gradient goes through the rows `rows` alone.

    y = x + m F(x) + (1 - m) sg(F(x)): other rows pass theirs. Every product runs once; saved is what `mlp_skip` saves.
    Dropout is not served. Arguments and errors as `mlp_skip`. Source: LeMo's `rows` reading (Wang et al. 2025).
    """
    with torch.no_grad(), Recording(x.shape[0]) as recording:
        y = _branch(x, up, down, norm, activation, packed)
    join = KeptRows(rows)
    with recording.replay(rows):
        part = _branch(join.enter(x), up, down, norm, activation, packed)
    return join.leave_as(x, part, y)


def _branch(
    x: Tensor, up: Sequence[Projection], down: Projection, norm: Norm | None, activation: str, packed: bool
) -> Tensor:
    check_branch("mlp_rows", up, down, packed)
    hidden = hidden_of(norm_lora_linear(x, up, norm), activation, packed)
    return norm_lora_linear(hidden, [replace(down, residual=x)])[0]
