"""Which document and which position every query and key has, as the engine's int32 arrays.

Documents come from, in order of trust: ``cu_seq_lens_q`` given by the caller; what transformers' mask
function found; restarts in ``position_ids``. A position counts from the first token of the document, so
padding on the left does not move it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from longspan import ops

if TYPE_CHECKING:
    from longspan.patch.mask import MaskSpec


def build_layout(
    spec: MaskSpec, device: torch.device, cu_seqlens: Tensor | None, position_ids: Tensor | None
) -> ops.TokenLayout | None:
    """The layout of one forward, or None when it is plain causal attention of T tokens over themselves.

    cu_seqlens int32 [documents + 1]; position_ids [1 or B, T]. Raises ``ValueError`` for document boundaries
    that do not fit the batch or that continue a cache, and for a padding mask that is too short.
    """
    fresh = isinstance(spec.q_offset, int) and spec.q_offset == 0 and spec.kv_offset == 0
    padding = _padding(spec, device)
    if not fresh:
        _refuse_packed_continuation(spec, cu_seqlens, position_ids, padding)
        return _continued(spec, device, padding)
    valid = None if padding is None else padding[:, : spec.q_length]
    doc = _documents(spec, device, cu_seqlens, position_ids, valid)
    if doc is None and valid is None and spec.kv_length == spec.q_length:
        return None
    if doc is None:
        doc = torch.zeros(spec.batch, spec.q_length, dtype=torch.int64, device=device)
    pos = _positions(doc, valid)
    if valid is not None:
        doc = torch.where(valid, doc, -1)
    unwritten = spec.kv_length - spec.q_length
    key_doc = torch.nn.functional.pad(doc, (0, unwritten), value=-1)
    key_pos = torch.nn.functional.pad(pos, (0, unwritten))
    return _layout(doc, pos, key_doc, key_pos)


def _layout(doc: Tensor, pos: Tensor, key_doc: Tensor, key_pos: Tensor) -> ops.TokenLayout:
    queries, keys = torch.stack([doc, pos]), torch.stack([key_doc, key_pos])
    return ops.TokenLayout(queries.to(torch.int32).contiguous(), keys.to(torch.int32).contiguous())


def _padding(spec: MaskSpec, device: torch.device) -> Tensor | None:
    """The padding mask over all tokens from index 0, False beyond what was written; [B, kv_offset + S] at
    least.
    """
    if spec.padding is None:
        return None
    columns = spec.padding.shape[-1]
    if isinstance(spec.q_offset, int) and columns < spec.q_offset + spec.q_length:
        raise ValueError(
            f"attention_mask has {columns} columns but {spec.q_offset} tokens are cached and {spec.q_length} "
            f"are new; give a mask of {spec.q_offset + spec.q_length} columns"
        )
    mask = spec.padding.to(device)
    missing = spec.kv_offset + spec.kv_length - columns
    return torch.nn.functional.pad(mask, (0, missing)) if missing > 0 else mask


def _continued(spec: MaskSpec, device: torch.device, padding: Tensor | None) -> ops.TokenLayout:
    """T new tokens after a cache of one document per row."""
    queries = torch.arange(spec.q_length, device=device) + spec.q_offset
    keys = torch.arange(spec.kv_length, device=device) + spec.kv_offset
    rows = 1 if padding is None else spec.batch
    queries, keys = queries.expand(rows, -1), keys.expand(rows, -1)
    # Causality hides the unwritten part of a static cache; as padding its tiles are skipped without arithmetic.
    key_doc = torch.where(keys < spec.q_offset + spec.q_length, 0, -1)
    doc = torch.zeros_like(queries)
    if padding is not None:
        key_doc = torch.where(padding.gather(1, keys), key_doc, -1)
        doc = torch.where(padding.gather(1, queries), doc, -1)
        first = padding.int().argmax(-1, keepdim=True)
        queries, keys = (queries - first).clamp(min=0), (keys - first).clamp(min=0)
    return _layout(doc, queries, key_doc, keys)


def _documents(
    spec: MaskSpec,
    device: torch.device,
    cu_seqlens: Tensor | None,
    position_ids: Tensor | None,
    valid: Tensor | None,
) -> Tensor | None:
    """Document numbers [B, T] of a forward without past, or None when every row is one document."""
    if cu_seqlens is not None:
        return _from_boundaries(spec, device, cu_seqlens)
    if spec.doc is not None:
        return spec.doc.to(device)
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[-1] != spec.q_length:
        return None
    starts = _restarts(position_ids.to(device).expand(spec.batch, -1), valid)
    if not torch.compiler.is_compiling() and starts.device.type == "cpu" and not bool(starts.any()):
        return None
    return starts.cumsum(-1)


def _from_boundaries(spec: MaskSpec, device: torch.device, cu_seqlens: Tensor) -> Tensor:
    if spec.batch != 1:
        raise ValueError(
            f"cu_seq_lens_q describes one flattened row, but the batch has {spec.batch} rows; "
            "flatten it to [1, tokens] (longspan.data.collate does)"
        )
    cu = cu_seqlens.to(device=device, dtype=torch.int64)
    if cu.ndim != 1 or cu.shape[0] < 2:
        raise ValueError(f"cu_seq_lens_q must be [documents + 1], not {list(cu.shape)}")
    readable = device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and (int(cu[0]) != 0 or int(cu[-1]) != spec.q_length or bool((cu.diff() < 0).any())):
        raise ValueError(
            f"cu_seq_lens_q must rise from 0 to the {spec.q_length} tokens of the batch, not {cu.tolist()}"
        )
    tokens = torch.arange(spec.q_length, device=device)
    return (torch.searchsorted(cu, tokens, right=True) - 1)[None]


def _restarts(position_ids: Tensor, valid: Tensor | None) -> Tensor:
    """True where a real token's position does not rise above that of the real token before it. [B, T]"""
    if valid is None:
        return torch.nn.functional.pad(position_ids[:, 1:] <= position_ids[:, :-1], (1, 0))
    index = torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
    last = torch.where(valid, index, -1).cummax(-1).values
    before = torch.nn.functional.pad(last[:, :-1], (1, 0), value=-1)
    return valid & (before >= 0) & (position_ids <= position_ids.gather(1, before.clamp(min=0)))


def _positions(doc: Tensor, valid: Tensor | None) -> Tensor:
    """Index of each token counted from the first real token of its document. [B, T]"""
    index = torch.arange(doc.shape[1], device=doc.device).expand_as(doc)
    starts = torch.nn.functional.pad(doc[:, 1:] != doc[:, :-1], (1, 0), value=True)
    if valid is not None:
        starts = starts | (index == valid.int().argmax(-1, keepdim=True))
    return index - torch.where(starts, index, 0).cummax(-1).values


def _refuse_packed_continuation(
    spec: MaskSpec, cu_seqlens: Tensor | None, position_ids: Tensor | None, padding: Tensor | None
) -> None:
    restarts = False
    readable = padding is None and not torch.compiler.is_compiling()
    if readable and position_ids is not None and position_ids.ndim == 2 and position_ids.device.type == "cpu":
        restarts = position_ids.shape[-1] == spec.q_length and bool(_restarts(position_ids, None).any())
    if cu_seqlens is not None or restarts:
        raise ValueError(
            "packed documents cannot continue a key/value cache: the documents of the cached tokens are not "
            "known; give whole documents without past_key_values"
        )
