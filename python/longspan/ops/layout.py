"""Documents, positions and flags of the tokens that attend: packing, padding and caches as plain arrays."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops._rows import check_distinct

PADDING = -1


@dataclass(frozen=True)
class TokenLayout:
    """int32 document, position and flag of every query and every key.

    queries: [2 or 3, 1 or B, T]; keys: [2 or 3, 1 or B, S]. Planes: document (-1 is padding: sees nothing and is seen
    by nothing), position inside the document, and optionally a flag whose bit 0 marks a global token, which groups and
    windows do not hide.
    """

    queries: Tensor
    keys: Tensor

    @classmethod
    def packed(cls, cu_seqlens: Tensor) -> TokenLayout:
        """Documents one behind the other: document i holds the tokens cu_seqlens[i] to cu_seqlens[i+1].

        cu_seqlens: int [documents + 1], from 0, never decreasing; empty documents are allowed. Raises ValueError for
        what does not fit.
        """
        if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"TokenLayout.packed: cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}; "
                "it must be int32 or int64 [documents + 1]"
            )
        lengths = cu_seqlens.diff()
        if int(cu_seqlens[0]) != 0 or bool((lengths < 0).any()):
            raise ValueError(
                f"TokenLayout.packed: cu_seqlens must start at 0 and never decrease; got {_shown(cu_seqlens)}"
            )
        total = int(cu_seqlens[-1])
        doc = torch.repeat_interleave(torch.arange(len(lengths), device=cu_seqlens.device), lengths, output_size=total)
        pos = torch.arange(total, device=cu_seqlens.device) - cu_seqlens[:-1].to(torch.int64)[doc]
        return cls._same(doc[None], pos[None])

    @classmethod
    def padded(cls, mask: Tensor) -> TokenLayout:
        """One document a batch row; mask [B, T], true (or 1) on tokens and false on padding, on either side.

        Raises ValueError unless the mask is a matrix.
        """
        if mask.dim() != 2:
            raise ValueError(f"TokenLayout.padded: mask has shape {tuple(mask.shape)}; it must be [B, T]")
        real = mask.to(torch.bool)
        pos = (real.cumsum(-1) - 1).clamp(min=0)
        return cls._same(torch.where(real, 0, PADDING), pos)

    @classmethod
    def cached(cls, past: int, length: int, *, device: torch.device | str | None = None) -> TokenLayout:
        """`length` new queries behind `past` cached keys: T = length, S = past + length.

        Raises ValueError for lengths that are negative.
        """
        for name, value, least in (("past", past, 0), ("length", length, 0)):
            if not isinstance(value, int) or value < least:
                raise ValueError(f"TokenLayout.cached: {name} is {value!r}; it must be an integer of at least {least}")
        pos = torch.arange(past + length, device=device)
        doc = torch.zeros_like(pos)
        keys = _planes(doc[None], pos[None])
        return cls(keys[..., past:].contiguous(), keys)

    @classmethod
    def rows(cls, layout: TokenLayout, kept_rows: Tensor) -> TokenLayout:
        """The tokens `kept_rows` (int64 [N], increasing) of `layout`, with their original documents and positions.

        Raises ValueError for what does not fit.
        """
        if kept_rows.dim() != 1 or kept_rows.dtype != torch.int64:
            raise ValueError(
                f"TokenLayout.rows: kept_rows is {kept_rows.dtype} {tuple(kept_rows.shape)}; it must be int64 [N]"
            )
        length = layout.queries.shape[-1]
        if layout.keys.shape[-1] != length:
            raise ValueError(
                f"TokenLayout.rows: layout has {length} queries and {layout.keys.shape[-1]} keys; it must have as many"
            )
        check_distinct("TokenLayout.rows: kept_rows", kept_rows, length)
        return cls(layout.queries[..., kept_rows].contiguous(), layout.keys[..., kept_rows].contiguous())

    def with_global(self, tokens: Tensor) -> TokenLayout:
        """Marks tokens as global: bool [1 or B, S]; needs as many queries as keys.

        Raises ValueError for what does not fit.
        """
        if self.queries.shape[-1] != self.keys.shape[-1] or tokens.shape[-1] != self.keys.shape[-1]:
            raise ValueError(
                f"TokenLayout.with_global: {tuple(tokens.shape)} marks do not fit {self.queries.shape[-1]} queries "
                f"and {self.keys.shape[-1]} keys"
            )
        if tokens.dim() != 2 or tokens.shape[0] not in (1, self.keys.shape[1]):
            raise ValueError(
                f"TokenLayout.with_global: tokens has shape {tuple(tokens.shape)}; it must be [1 or "
                f"{self.keys.shape[1]}, {self.keys.shape[-1]}]"
            )
        flag = tokens.to(torch.int32).expand(self.keys.shape[1], -1)[None]
        return TokenLayout(torch.cat([self.queries[:2], flag]), torch.cat([self.keys[:2], flag]))

    def to(self, device: torch.device | str) -> TokenLayout:
        """The layout on another device."""
        return TokenLayout(self.queries.to(device), self.keys.to(device))

    @classmethod
    def _same(cls, doc: Tensor, pos: Tensor) -> TokenLayout:
        planes = _planes(doc, pos)
        return cls(planes, planes)


def _planes(doc: Tensor, pos: Tensor) -> Tensor:
    return torch.stack([doc, pos]).to(torch.int32).contiguous()


def _shown(values: Tensor) -> str:
    shown = values[:8].tolist()
    return f"{shown}{'...' if values.numel() > 8 else ''}"
