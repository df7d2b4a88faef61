"""The tokens of one forward as one row: what a layer needs to run on some of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.patch.backend import spec_of
from longspan.patch.mask import MaskSpec

# What the engine reads beside the mask; a mask of rows has settled it.
_SETTLED = ("attention_mask", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "position_ids")


@dataclass(frozen=True)
class Stream:
    """Documents and positions of all M = B*T tokens, one row [., 1, M]; their blocks; the model's window."""

    layout: ops.TokenLayout
    blocks: ops.TokenBlocks
    window: int | None

    @classmethod
    def of(cls, where: str, given: dict[str, Any], batch: int, length: int, device: torch.device, block: int) -> Stream:
        """From what a decoder layer is given; made once a forward and block size."""
        mask = spec_of(where, given.get("attention_mask"))
        key = ("stream", block)
        if key not in mask.notes:
            layout = mask.layout(device, given.get("cu_seq_lens_q"), given.get("position_ids"))
            mask.notes[key] = cls._made(layout, mask.window, batch, length, device, block)
        found: Stream = mask.notes[key]
        return found

    @classmethod
    def _made(
        cls,
        layout: ops.TokenLayout | None,
        window: int | None,
        batch: int,
        length: int,
        device: torch.device,
        block: int,
    ) -> Stream:
        sample = torch.arange(batch, device=device, dtype=torch.int32)[:, None]
        if layout is None:
            blocks = ops.TokenBlocks.even(batch, length, block, device=device)
            token = torch.arange(length, device=device, dtype=torch.int32)
            planes = torch.stack([sample.expand(batch, length), token.expand(batch, length)])
        else:
            doc, pos = layout.queries[:2].expand(2, batch, length).unbind(0)
            blocks = ops.TokenBlocks.of(_runs(doc), batch * length, block, device=device)
            planes = torch.stack([torch.where(doc < 0, doc, doc + sample * length), pos])
        planes = planes.reshape(2, 1, batch * length).contiguous()
        return cls(ops.TokenLayout(planes, planes), blocks, window)

    def given(self, given: dict[str, Any], rows: Tensor, *, all_keys: bool = False) -> dict[str, Any]:
        """What a layer is given for these rows as queries, and as keys unless those are all."""
        kept = ops.TokenLayout.rows(self.layout, rows)
        layout = ops.TokenLayout(kept.queries, self.layout.keys) if all_keys else kept
        rest = {name: value for name, value in given.items() if name not in _SETTLED}
        return rest | {"attention_mask": RowsMask(layout, self.window)}


class RowsMask(MaskSpec):
    """The mask of some rows of a flattened batch, its layout settled."""

    def __init__(self, layout: ops.TokenLayout, window: int | None) -> None:
        queries, keys = layout.queries.shape[-1], layout.keys.shape[-1]
        super().__init__(batch=1, q_length=queries, kv_length=keys, window=window)
        self._layout, self._built = layout, True


def _runs(doc: Tensor) -> list[tuple[int, int]]:
    """(first row, rows) of every document of [B,T] numbers, padding left out."""
    found = []
    for sample, numbers in enumerate(doc.cpu()):
        values, counts = numbers.unique_consecutive(return_counts=True)
        first = sample * doc.shape[1]
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            if value >= 0:
                found.append((first, count))
            first += count
    return found
