"""Attention over lists of keys, for lists that are short beside the keys, and the transposed lists."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops.pattern import MOST

MAX_HEAD_DIM = 256


def list_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of each query over its own list of keys.

        out[t,h] = sum over j in indices[t,h] of softmax_j(cap(scale * <q[t,h], k[j,g(h)]>)) v[j,g(h)]

    q: [B,H,T,D]; k, v: [B,K,S,D], as `attention`; indices: int32 [B,H,T,L], contiguous, increasing, -1 behind the last
    (`topl_indices` makes such). An empty list gives 0, and -inf for lse. Differentiable in q, k and v. Saved for
    backward: q, k, v, out, lse and indices, 4 L bytes a query; the backward makes the transposed lists, as many again.
    Each pair reads whole rows of k and v: below the density that docs/list_attention.md measures this is faster than
    dense tiles under a mask, above it slower. Deterministic; the result does not depend on the number of threads.

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: SPT (arXiv 2312.10365), whose lists have no duplicates and no filler here.
    """
    _check(q, k, v, indices, softcap)
    if scale is not None and not abs(scale) <= torch.finfo(torch.float32).max:
        raise ValueError(f"list_attention: scale is {scale}; it must be a finite float32")
    require("list_attention_fwd", q)
    out, lse = op("list_attention_fwd")(
        q, k, v, indices, q.shape[-1] ** -0.5 if scale is None else scale, softcap or 0.0
    )
    return (out, lse) if return_lse else out


@torch.no_grad()
def list_transpose(indices: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    """The queries that have each key: starts int32 [B,H,keys+1] and rows int32 [B,H,T L], -1 behind the last.

    Queries starts[j] to starts[j+1] of rows have key j in their lists indices [B,H,T,L], increasing. No gradient.
    Raises ValueError for what does not fit, MissingBackendError when no kernel serves the device.
    """
    _check_lists("list_transpose", indices)
    if not 0 <= keys <= MOST:
        raise ValueError(f"list_transpose: keys is {keys}; it must not be negative, and be below 2^31")
    require("list_transpose", indices)
    starts, rows = op("list_transpose")(indices, keys)
    return starts, rows


def _check_lists(name: str, indices: Tensor) -> None:
    if indices.dtype != torch.int32 or indices.dim() != 4 or not indices.is_contiguous():
        raise ValueError(
            f"{name}: indices are {indices.dtype} {tuple(indices.shape)}; they must be contiguous int32 [B,H,T,L]"
        )


def _check(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, softcap: float | None) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"list_attention: {name} has shape {tuple(x.shape)}; it must be [B, heads, tokens, D]")
        check_dtype("list_attention", name, x, half=True)
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"list_attention: {name} is {x.dtype} on {x.device} but q is {q.dtype} on {q.device}; they must agree"
            )
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"list_attention: {name} has stride {x.stride(-1)} along D; it must be 1, call {name}.contiguous()"
            )
    if k.shape != v.shape or k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"list_attention: q {tuple(q.shape)}, k {tuple(k.shape)} and v {tuple(v.shape)} do not fit: k and v must "
            "be equal and agree with q in batch size and D"
        )
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"list_attention: {q.shape[1]} query heads are not a multiple of {k.shape[1]} key/value heads")
    if not 1 <= q.shape[3] <= MAX_HEAD_DIM:
        raise ValueError(f"list_attention: head dimension D is {q.shape[3]}; allowed: 1 to {MAX_HEAD_DIM}")
    _check_lists("list_attention", indices)
    if indices.shape[:3] != q.shape[:3] or indices.device != q.device:
        raise ValueError(
            f"list_attention: indices are {tuple(indices.shape)} on {indices.device}; there must be a list for each "
            f"row of q {tuple(q.shape)} on {q.device}"
        )
    if softcap is not None and softcap < 0:
        raise ValueError(f"list_attention: softcap is {softcap}; it must be positive, or None for no cap")


def _heads_last(x: Tensor) -> Tensor:
    B, H, T, D = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


def _fwd_fake(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float, softcap: float) -> tuple[Tensor, Tensor]:
    statistics = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _heads_last(q), q.new_empty(q.shape[:3], dtype=statistics)


def _bwd_fake(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _heads_last(q), _heads_last(k), _heads_last(v)


def _transpose_fake(indices: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    B, H, T, L = indices.shape
    return indices.new_empty((B, H, keys + 1)), indices.new_empty((B, H, T * L))


define(
    "list_attention_fwd",
    "(Tensor q, Tensor k, Tensor v, Tensor indices, float scale, float softcap) -> (Tensor out, Tensor lse)",
    _fwd_fake,
)
define(
    "list_attention_bwd",
    "(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor indices, Tensor starts, "
    "Tensor rows, float scale, float softcap) -> (Tensor dq, Tensor dk, Tensor dv)",
    _bwd_fake,
)
define("list_transpose", "(Tensor indices, SymInt keys) -> (Tensor starts, Tensor rows)", _transpose_fake)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, indices, ctx.scale, ctx.softcap = inputs
    ctx.save_for_backward(q, k, v, *output, indices)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, indices = ctx.saved_tensors
    if dout is None and dlse is None:
        return (None,) * 6
    if dout is None:
        dout = torch.zeros_like(out)
    if dout.shape[-1] > 1 and dout.stride(-1) != 1:
        dout = dout.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    starts, rows = op("list_transpose")(indices, k.shape[2])
    spec = (indices, starts, rows, ctx.scale, ctx.softcap)
    grads = op("list_attention_bwd")(dout, dlse, q, k, v, out, lse, *spec)
    return (*grads, None, None, None)


def _setup_transpose(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output)


def _transpose_backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None]:
    return None, None  # lists only choose


torch.library.register_autograd("longspan::list_attention_fwd", _backward, setup_context=_save)
torch.library.register_autograd("longspan::list_transpose", _transpose_backward, setup_context=_setup_transpose)
