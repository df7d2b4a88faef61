"""The oracle of the attention engine: a dense mask from the definition, any float dtype, O(T S) memory."""

from __future__ import annotations

import torch
from torch import Tensor

from longspan.ops.layout import TokenLayout
from longspan.ops.pattern import AttentionPattern
from longspan.ops.reference import topl


def visible(
    pattern: AttentionPattern,
    heads: int,
    queries: int,
    keys: int,
    layout: TokenLayout | None = None,
    model_window: int | None = None,
    selected: Tensor | None = None,
) -> Tensor:
    """Which pairs attend: bool [1 or B, H, T, S]. selected: those that a selection adds to the near ones."""
    if layout is None:
        one = torch.arange(max(queries, keys), dtype=torch.int32)
        planes = torch.stack([torch.zeros_like(one), one])[:, None]
        layout = TokenLayout(planes[..., :queries], planes[..., :keys])

    def plane(planes: Tensor, index: int) -> Tensor:
        return planes[index].long() if planes.shape[0] > index else torch.zeros_like(planes[0], dtype=torch.long)

    doc_q, pos_q, flag_q = (plane(layout.queries, i)[:, None, :, None] for i in range(3))
    doc_k, pos_k, flag_k = (plane(layout.keys, i)[:, None, None, :] for i in range(3))
    allowed = (doc_q == doc_k) & (doc_k >= 0)
    if pattern.causal:
        allowed = allowed & (pos_k <= pos_q)
    if model_window:
        allowed = allowed & (pos_q - pos_k < model_window)
    everywhere = torch.ones((), dtype=torch.bool, device=pos_q.device)
    if pattern.kind == "full":
        near = everywhere
    elif pattern.kind in ("window", "selected"):
        near = (pos_q - pos_k < pattern.size) & (pattern.size > 0)
    elif pattern.kind == "s2":
        shifted = torch.arange(heads, device=pos_q.device) >= heads // 2
        shift = (shifted * (pattern.group_size // 2))[None, :, None, None]
        near = (pos_q + shift) // pattern.group_size == (pos_k + shift) // pattern.group_size
    else:
        near = _listed(pattern, heads, queries, keys)
    if pattern.kind != "tiles":
        near = near | (pos_k < pattern.sinks) | (flag_q & 1).bool() | (flag_k & 1).bool()
    if selected is not None:
        near = near | selected
    mask = allowed & near
    return mask.expand(mask.shape[0], heads, queries, keys)


def _listed(pattern: AttentionPattern, heads: int, queries: int, keys: int) -> Tensor:
    """bool [1 or B, H, T, S]."""
    assert pattern.tile_table is not None
    table = pattern.tile_table.long()
    table = table[None] if table.dim() == 3 else table
    table = table.repeat_interleave(heads // table.shape[1], 1)
    key_tiles = -(-keys // pattern.tile_size)
    hit = torch.zeros(*table.shape[:3], key_tiles + 1, dtype=torch.bool)
    inside = (table >= 0) & (table < key_tiles)
    hit.scatter_(3, torch.where(inside, table, key_tiles), True)
    rows = torch.arange(queries) // pattern.tile_size
    cols = torch.arange(keys) // pattern.tile_size
    return hit[:, :, rows][..., cols]


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
) -> tuple[Tensor, Tensor]:
    """out [B,H,T,D] and lse [B,H,T] by the definition of `longspan.ops.attention`, differentiable by autograd."""
    scores, empty = masked_scores(q, k, pattern, layout, scale, softcap, model_window)
    lse = torch.logsumexp(scores, -1).masked_fill(empty[..., 0], float("-inf"))
    v = v.repeat_interleave(q.shape[1] // v.shape[1], dim=1)
    out = (torch.softmax(scores, -1) @ v).masked_fill(empty, 0.0)
    return out, lse


def masked_scores(
    q: Tensor,
    k: Tensor,
    pattern: AttentionPattern | None,
    layout: TokenLayout | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    model_window: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits [B,H,T,S], -inf where a pair does not attend, and which rows see nothing: bool [1 or B,H,T,1]."""
    _, H, T, D = q.shape
    S = k.shape[2]
    pattern = AttentionPattern.full() if pattern is None else pattern
    k = k.repeat_interleave(H // k.shape[1], dim=1)
    scores = q @ k.transpose(-1, -2) * (D**-0.5 if scale is None else scale)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    far = None if pattern.selection is None else topl.selected(pattern.selection, q.detach())
    mask = visible(pattern, H, T, S, layout, model_window, far)
    empty = ~mask.any(-1, keepdim=True)
    # Rows that see nothing take a uniform row first, so that no NaN enters the graph, and are then set to zero.
    return scores.masked_fill(~mask & ~empty, float("-inf")), empty
