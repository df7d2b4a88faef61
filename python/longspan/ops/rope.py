"""Rotary position embedding, out of place and in place. Nothing is kept for the gradient but the tables."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops._rows import last_contiguous


def rope_table(inv_freq: Tensor, length: int, *, scaling: float = 1.0) -> tuple[Tensor, Tensor]:
    """cos and sin [length, N] of the angles position * inv_freq, float32 and times `scaling`.

    inv_freq: [N], the angle of each pair for one step: base^(-2 i / R), or what a method of longer contexts makes of it
    (position interpolation, NTK, YaRN, LongRoPE); scaling: their attention factor. Angles are computed in float64: in
    float32 the angle of position 65536 is off by up to 0.004. Raises ValueError for a wrong shape, type or length.
    """
    if inv_freq.dim() != 1 or not inv_freq.dtype.is_floating_point:
        raise ValueError(
            f"rope_table: inv_freq is {inv_freq.dtype} with shape {tuple(inv_freq.shape)}; "
            "it must be floating point [N]"
        )
    if length < 0:
        raise ValueError(f"rope_table: length is {length}; it must not be negative")
    if not 0 < scaling < math.inf:
        raise ValueError(f"rope_table: scaling is {scaling}; it must be finite and positive")
    angles = torch.arange(length, device=inv_freq.device, dtype=torch.float64)[:, None] * inv_freq.double()
    return (angles.cos() * scaling).float(), (angles.sin() * scaling).float()


def rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, interleaved: bool = False) -> Tensor:
    """Turns the pairs of columns of each head by the angles of its token: (a, b) -> (a cos - b sin, a sin + b cos).

    x: [B,H,T,D], any strides with D contiguous, float32, bfloat16, float64 on the CPU, float16 on CUDA. cos, sin: [P,N]
    float32, or float64 for float64 (`rope_table` makes them); 2 N <= D, and columns from 2 N on stay as they are
    (partial rotary). positions: [T] or [1 or B, T], int64 or int32, rows of the tables: any integers in [0, P).
    interleaved: pairs are columns (2 i, 2 i + 1) as in GPT-J, instead of (i, i + N) as in GPT-NeoX and Llama.

    Returns a new tensor of x's shape with [B,T,H,D] storage. Differentiable any number of times in x; the tables are
    constants. Arithmetic is in float32 or wider, rounded once. Nothing but the tables is saved. Deterministic.

    On CUDA nothing waits for the device: a position out of range gives nan in its token. On the CPU it raises
    ValueError. Raises ValueError for anything else that does not fit, MissingBackendError when no kernel serves the
    device.
    Source: Su et al. 2021, section 3.2.2.
    """
    x, positions = _checked("rope", x, None, cos, sin, positions)
    out: Tensor = op("rope")(x, cos, sin, positions, interleaved, False)
    return out


def rope_(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, *, heads: int | None = None, interleaved: bool = False
) -> Tensor:
    """`rope` in place: overwrites x and returns it; errors as there.

    With `heads`, x is [B,T,heads*D] or [T,heads*D], a projection's output as it is: giving it instead of a view of it
    spares autograd the copy of a gradient that a view written in place costs. x must not be a leaf that requires grad.
    """
    _, positions = _checked("rope_", x, heads, cos, sin, positions)
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise ValueError("rope_: the last dimension of x must be contiguous; call x.contiguous() or use rope")
    out: Tensor = _InPlace.apply(x, cos, sin, positions, heads, interleaved)
    return out


def rope_packed_(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    *,
    heads: int,
    kv_heads: int,
    layout: str = "blocks",
    interleaved: bool = False,
) -> Tensor:
    """`rope` in place on the queries and keys of one packed projection x [T, (heads + 2 kv_heads) D]; returns x.

    layout: "blocks" holds all queries, then all keys, then all values (Phi-3); "heads" holds query, key and value of
    head 0, then of head 1, ... (GPT-NeoX), for which kv_heads must be heads. positions: [T]. Values stay as they are.
    Otherwise as `rope_`. Raises ValueError for an unknown layout and for what does not fit.
    """
    if layout not in ("blocks", "heads"):
        raise ValueError(f"rope_packed_: layout is {layout!r}; allowed: blocks, heads")
    total = heads + 2 * kv_heads
    fits = heads >= 1 and kv_heads >= 1 and (layout == "blocks" or heads == kv_heads)
    if x.dim() != 2 or not fits or x.shape[1] % total:
        raise ValueError(
            f"rope_packed_: x has shape {tuple(x.shape)}; with {heads} heads and {kv_heads} key/value heads in layout "
            f"{layout!r} it must be [T, {total} * D]"
        )
    _, positions = _checked("rope_packed_", x, total, cos, sin, positions)
    if x.stride(1) != 1:
        raise ValueError("rope_packed_: the last dimension of x must be contiguous; call x.contiguous()")
    out: Tensor = _PackedInPlace.apply(x, cos, sin, positions, (heads, kv_heads, layout), interleaved)
    return out


def _packed_parts(x: Tensor, packing: tuple[int, int, str]) -> tuple[Tensor, ...]:
    """Queries and keys of a packed projection [T, ...] as [1,H,T,D] each, or both as one."""
    heads, kv_heads, layout = packing
    if layout == "blocks":
        rows: Tensor = x.unflatten(1, (heads + 2 * kv_heads, -1)).transpose(0, 1)[None]
        return (rows[:, : heads + kv_heads],)
    each = x.unflatten(1, (heads, 3, -1)).permute(2, 1, 0, 3)
    return each[0][None], each[1][None]


def _heads_first(x: Tensor, heads: int | None) -> Tensor:
    """[B,H,T,D] of any layout, without a copy."""
    if heads is None:
        return x
    rows = x.unflatten(-1, (heads, -1)).transpose(-3, -2)
    return rows if x.dim() == 3 else rows[None]


def _checked(
    name: str, x: Tensor, heads: int | None, cos: Tensor, sin: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor]:
    """x as [B,H,T,D] and positions as [1 or B, T] int64."""
    if heads is not None and (x.dim() not in (2, 3) or heads < 1 or x.shape[-1] % heads):
        raise ValueError(
            f"{name}: x has shape {tuple(x.shape)}; with heads={heads} it must be [B, T, {heads} * D] or "
            f"[T, {heads} * D]"
        )
    if heads is None and x.dim() != 4:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; it must be [B,H,T,D]")
    check_dtype(name, "x", x, half=True)
    x = _heads_first(x, heads)
    statistics = torch.float64 if x.dtype == torch.float64 else torch.float32
    for label, table in (("cos", cos), ("sin", sin)):
        if table.dtype != statistics or table.dim() != 2 or table.shape != cos.shape or table.device != x.device:
            raise ValueError(
                f"{name}: {label} is {table.dtype} {tuple(table.shape)} on {table.device}; cos and sin must be "
                f"{statistics} [P,N] on {x.device}"
            )
        if table.requires_grad:
            raise ValueError(f"{name}: {label} requires grad but is a constant here; call {label}.detach()")
    if 2 * cos.shape[1] > x.shape[3]:
        raise ValueError(
            f"{name}: cos has {cos.shape[1]} columns; a head of {x.shape[3]} has room for at most {x.shape[3] // 2}"
        )
    if positions.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: positions is {positions.dtype}; allowed: int64, int32")
    rows = positions[None] if positions.dim() == 1 else positions
    fits = rows.dim() == 2 and rows.shape[0] in (1, x.shape[0]) and rows.shape[1] == x.shape[2]
    if not fits or rows.device != x.device:
        raise ValueError(
            f"{name}: positions has shape {tuple(positions.shape)} on {positions.device}; it must be "
            f"({x.shape[2]},) or (1 or {x.shape[0]}, {x.shape[2]}) on {x.device}"
        )
    rows = rows.to(torch.int64).contiguous()
    require("rope", x)
    if not torch.compiler.is_compiling():
        _check_range(name, rows, cos.shape[0])
    return last_contiguous(x), rows


def _check_range(name: str, rows: Tensor, length: int) -> None:
    """Names the first position out of range. Values are only read where that is free; the kernel checks again."""
    if type(rows) is not Tensor or rows.device.type != "cpu" or not rows.numel():
        return
    low, high = rows.aminmax()
    if int(low) < 0 or int(high) >= length:
        row, token = (int(i) for i in ((rows < 0) | (rows >= length)).nonzero()[0])
        raise ValueError(
            f"{name}: position {int(rows[row, token])} of token {token} in row {row} is out of range; the tables have "
            f"rows 0 to {length - 1}"
        )


def _fake(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool, inverse: bool) -> Tensor:
    B, H, T, D = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


def _fake_in_place(
    x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool, inverse: bool
) -> None: ...


# y [B,H,T,D] with [B,T,H,D] storage; inverse is the gradient's direction (the transposed map).
define(
    "rope",
    "(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool interleaved, bool inverse) -> Tensor",
    _fake,
)
define(
    "rope_",
    "(Tensor(a!) x, Tensor cos, Tensor sin, Tensor positions, bool interleaved, bool inverse) -> ()",
    _fake_in_place,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, positions, interleaved, inverse = inputs
    ctx.save_for_backward(cos, sin, positions)
    ctx.interleaved, ctx.inverse = interleaved, inverse


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    return op("rope")(last_contiguous(dy), *ctx.saved_tensors, ctx.interleaved, not ctx.inverse), *(None,) * 5


torch.library.register_autograd("longspan::rope", _backward, setup_context=_save)


class _InPlace(Function):
    """The in-place op, whose schema register_autograd refuses."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, heads: int | None, interleaved: bool
    ) -> Tensor:
        op("rope_")(_heads_first(x, heads), cos, sin, positions, interleaved, False)
        ctx.mark_dirty(x)
        ctx.save_for_backward(cos, sin, positions)
        ctx.heads, ctx.interleaved = heads, interleaved
        return x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows = _heads_first(last_contiguous(dy), ctx.heads)
        dx = op("rope")(rows, *ctx.saved_tensors, ctx.interleaved, True)
        if ctx.heads is not None:
            dx = dx.transpose(1, 2).flatten(2)
        return dx if dx.dim() == dy.dim() else dx[0], *(None,) * 5


class _PackedInPlace(Function):
    """The in-place op on the rotated columns of a wider row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        positions: Tensor,
        packing: tuple[int, int, str],
        interleaved: bool,
    ) -> Tensor:
        for part in _packed_parts(x, packing):
            op("rope_")(part, cos, sin, positions, interleaved, False)
        ctx.mark_dirty(x)
        ctx.save_for_backward(cos, sin, positions)
        ctx.packing, ctx.interleaved = packing, interleaved
        return x

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, tables = dy.clone(memory_format=torch.contiguous_format), ctx.saved_tensors
        for part in _packed_parts(dx, ctx.packing):
            op("rope_")(part, *tables, ctx.interleaved, True)
        return dx, *(None,) * 5
