"""The attention engine: exact softmax attention over a pattern of visible pairs, with O(T) memory beside its inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._dtypes import check_dtype
from longspan.ops.layout import TokenLayout
from longspan.ops.pattern import AttentionPattern, check_model_window

MAX_HEAD_DIM = 256
_SPEC = (
    "Tensor? q_layout, Tensor? k_layout, Tensor? tiles, str pattern, bool causal, SymInt group_size, SymInt window, "
    "SymInt sinks, SymInt model_window, SymInt tile_size, float scale, float softcap, Tensor? key_codes=None, "
    "Tensor? query_codes=None, Tensor? codebook=None, Tensor? threshold=None, Tensor? cut=None, SymInt subspaces=0, "
    "SymInt codewords=0"
)
_PLAIN = (None, None, None, None, None, 0, 0)  # of a pattern without a selection


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: AttentionPattern | None = None,
    *,
    layout: TokenLayout | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    model_window: int | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of H query heads over K shared key/value heads, which are never expanded.

        out[t,h] = sum_j softmax_j(cap(scale * <q[t,h], k[j,g(h)]>)) v[j,g(h)]
        j visible to (t, h),  g(h) = h // (H // K)

    q: [B,H,T,D]; k, v: [B,K,S,D]; float32 or bfloat16, on the CPU also float64, on CUDA also float16 (16-bit types are
    computed in float32), any strides with D contiguous, 1 <= D <= 256, H a multiple of K. pattern: default
    `AttentionPattern.full()`. layout: documents and positions; None is one document and needs T = S (use
    `TokenLayout.cached` for new queries behind cached keys). scale: default D ** -0.5. softcap: c gives
    cap(x) = c tanh(x / c) (Gemma 2, section 2). model_window: the model's own sliding window, ANDed to the pattern.

    Returns out [B,H,T,D] with [B,T,H,D] storage, and with return_lse also the log-sum-exp [B,H,T] (float32, float64
    for float64; -inf where nothing is visible, and then out is 0). Both are differentiable. Saved for backward: q, k,
    v, out and lse. Deterministic; the result does not depend on the number of threads.

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: FlashAttention-2 (Dao 2023, section 3.1) for the blocked forward and backward; LongLoRA (Chen et al. 2024)
    for `s2`.
    """
    pattern = AttentionPattern.full() if pattern is None else pattern
    _check(q, k, v, pattern, layout, scale, softcap, model_window)
    require("attention_fwd", q)
    out, lse = op("attention_fwd")(
        q,
        k,
        v,
        None if layout is None else layout.queries,
        None if layout is None else layout.keys,
        pattern.tile_table,
        pattern.kind,
        pattern.causal,
        pattern.group_size,
        pattern.size,
        pattern.sinks,
        model_window or 0,
        pattern.tile_size,
        q.shape[-1] ** -0.5 if scale is None else scale,
        softcap or 0.0,
        *_selection(pattern),
    )
    return (out, lse) if return_lse else out


def _selection(pattern: AttentionPattern) -> tuple[Any, ...]:
    s = pattern.selection
    if s is None:
        return _PLAIN
    return s.key_codes, s.query_codes, s.codebook, s.threshold, s.cut, s.subspaces, s.codewords


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: AttentionPattern,
    layout: TokenLayout | None,
    scale: float | None,
    softcap: float | None,
    model_window: int | None,
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(f"attention: {name} has shape {tuple(x.shape)}; it must be [B, heads, tokens, D]")
        check_dtype("attention", name, x, half=True)
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(
                f"attention: {name} is {x.dtype} on {x.device} but q is {q.dtype} on {q.device}; they must agree"
            )
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError(
                f"attention: {name} has stride {x.stride(-1)} along D; it must be 1, call {name}.contiguous()"
            )
    B, H, T, D = q.shape
    K, S = k.shape[1], k.shape[2]
    if k.shape != v.shape:
        raise ValueError(f"attention: k has shape {tuple(k.shape)} but v has {tuple(v.shape)}; they must be equal")
    if k.shape[0] != B or k.shape[3] != D:
        raise ValueError(f"attention: q {tuple(q.shape)} and k {tuple(k.shape)} must agree in batch size and D")
    if K == 0 or H % K:
        raise ValueError(f"attention: {H} query heads are not a multiple of {K} key/value heads")
    if not 1 <= D <= MAX_HEAD_DIM:
        raise ValueError(f"attention: head dimension D is {D}; allowed: 1 to {MAX_HEAD_DIM}")
    if not isinstance(pattern, AttentionPattern):
        raise ValueError(
            f"attention: pattern is {pattern!r}; use AttentionPattern.full(), s2(), window(), tiles() or selected()"
        )
    if pattern.kind == "s2" and not pattern.group_size:
        raise ValueError("attention: s2(groups=n) has no group size yet; call pattern.resolve(length) once per run")
    if pattern.tile_table is not None:
        *batches, heads, rows, _ = pattern.tile_table.shape
        needed = -(-T // pattern.tile_size)
        if heads not in (1, K, H) or batches not in ([], [1], [B]) or rows < needed:
            raise ValueError(
                f"attention: the tile table covers {batches[0] if batches else 'all'} batch rows, {heads} heads and "
                f"{rows} query tiles; {B} batch rows (or 1), {H} heads (or {K}, or 1) and {needed} tiles of "
                f"{pattern.tile_size} rows are needed"
            )
    if pattern.selection is not None:
        found, keys = tuple(pattern.selection.threshold.shape), tuple(pattern.selection.key_codes.shape[:3])
        if found != (B, H, T) or keys != (B, K, S):
            raise ValueError(
                f"attention: the selection is of queries {found} and keys {keys}; q is {(B, H, T)} and k {(B, K, S)}"
            )
    beside = [("tiles", pattern.tile_table)]
    if pattern.selection is not None:
        beside += [
            (n, getattr(pattern.selection, n)) for n in ("key_codes", "threshold", "cut", "query_codes", "codebook")
        ]
    if layout is not None:
        beside += [("layout.queries", layout.queries), ("layout.keys", layout.keys)]
    for name, other in beside:
        if other is not None and other.device != q.device:
            raise ValueError(f"attention: {name} is on {other.device} and q on {q.device}; they must be together")
    if softcap is not None and softcap < 0:
        raise ValueError(f"attention: softcap is {softcap}; it must be positive, or None for no cap")
    check_model_window("attention", model_window)
    if layout is None:
        if T != S:
            raise ValueError(
                f"attention: {T} queries and {S} keys need a layout; for a cache use TokenLayout.cached({S - T}, {T})"
            )
        return
    for name, planes, length in (("queries", layout.queries, T), ("keys", layout.keys, S)):
        if planes.dtype != torch.int32 or planes.dim() != 3 or planes.shape[0] not in (2, 3):
            raise ValueError(
                f"attention: layout.{name} is {planes.dtype} {tuple(planes.shape)}; "
                "it must be int32 [2 or 3, 1 or B, length]"
            )
        if planes.shape[1] not in (1, B) or planes.shape[2] != length:
            raise ValueError(
                f"attention: layout.{name} describes {planes.shape[1]} rows of {planes.shape[2]} tokens; "
                f"the tensors have {B} rows of {length}"
            )


def _new_heads_last(x: Tensor) -> Tensor:
    B, H, T, D = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


def _fwd_fake(q: Tensor, k: Tensor, v: Tensor, *spec: Any) -> tuple[Tensor, Tensor]:
    stats = torch.float64 if q.dtype == torch.float64 else torch.float32
    return _new_heads_last(q), q.new_empty(q.shape[:3], dtype=stats)


def _bwd_fake(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *spec: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return _new_heads_last(q), _new_heads_last(k), _new_heads_last(v)


define("attention_fwd", f"(Tensor q, Tensor k, Tensor v, {_SPEC}) -> (Tensor out, Tensor lse)", _fwd_fake)
define(
    "attention_bwd",
    "(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, "
    f"{_SPEC}) -> (Tensor dq, Tensor dk, Tensor dv)",
    _bwd_fake,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, q_layout, k_layout, tiles, *spec = inputs
    numbers, codes = spec[:9], spec[9:14]
    ctx.save_for_backward(q, k, v, *output, q_layout, k_layout, tiles, *codes)
    ctx.spec, ctx.sizes = numbers, spec[14:]
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, q_layout, k_layout, tiles, *codes = ctx.saved_tensors
    none: tuple[None, ...] = (None,) * (3 + 9 + 5 + 2)
    if dout is None and dlse is None:
        return (None, None, None, *none)
    if dout is None:
        dout = torch.zeros_like(out)
    if dout.shape[-1] > 1 and dout.stride(-1) != 1:
        dout = dout.contiguous()
    dlse = None if dlse is None else dlse.contiguous()
    spec = (q_layout, k_layout, tiles, *ctx.spec, *codes, *ctx.sizes)
    grads = op("attention_bwd")(dout, dlse, q, k, v, out, lse, *spec)
    return (*grads, *none)


torch.library.register_autograd("longspan::attention_fwd", _backward, setup_context=_save)
