"""The mask object: what transformers says about a forward, kept as O(T) facts instead of a T x T mask.

transformers asks a mask function once per kind of layer and hands its result, whatever it is, to every
attention module as ``attention_mask``. Ours returns a `MaskSpec`; the layout that the engine needs is
built from it by the first layer and shared by the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.patch import documents

# Parts of mask functions that the engine serves; anything else in the tree of closures is refused by name.
_KNOWN_PARTS = frozenset(
    {
        "causal_mask_function",
        "and_masks.<locals>.and_mask",
        "sliding_window_overlay.<locals>.inner_mask",
        "packed_sequence_mask_function.<locals>.inner_mask",
        "remap_positions_for_packed_sequence.<locals>.inner_mask",
    }
)
_REFUSED_PARTS = {
    "bidirectional": "bidirectional attention",
    "sliding_window_bidirectional": "bidirectional attention",
    "chunked_overlay": "chunked attention (config.attention_chunk_size)",
    "blockwise_overlay": "blocks that attend bidirectionally (block_sequence_ids)",
    "or_masks": "a mask of its own joined to the causal one (or_mask_function)",
}


class MaskSpec:
    """Sizes, padding and documents of one forward, for the layers of one kind.

    ``padding`` is True for real tokens, [B, columns] over *all* tokens seen so far (None: no padding);
    ``doc`` is [B, T] document numbers when transformers found packed documents. ``window`` is the model's
    own sliding window in tokens, the query included. ``q_offset`` is the index of the first query,
    ``kv_offset`` of the first key.
    """

    # transformers treats a "4-D mask" as finished and passes it through untouched.
    ndim = 4

    def __init__(
        self,
        *,
        batch: int,
        q_length: int,
        kv_length: int,
        q_offset: int | Tensor = 0,
        kv_offset: int = 0,
        padding: Tensor | None = None,
        doc: Tensor | None = None,
        window: int | None = None,
    ) -> None:
        self.batch, self.q_length, self.kv_length = batch, q_length, kv_length
        self.q_offset, self.kv_offset = q_offset, kv_offset
        self.padding, self.doc, self.window = padding, doc, window
        self._layout: ops.TokenLayout | None = None
        self._built = False
        self.notes: dict[Any, Any] = {}  # what layers worked out from this mask, for those after them

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[B, 1, T, S], as the dense mask would have."""
        return (self.batch, 1, self.q_length, self.kv_length)

    def contiguous(self) -> MaskSpec:
        """Itself: ``generate`` makes prepared masks contiguous."""
        return self

    def check(self, query: Tensor, key: Tensor, where: str) -> None:
        """Raise ``ValueError`` when query [B, H, T, D] and key [B, K, S, D] do not have the announced
        lengths.
        """
        got = (query.shape[0], query.shape[2], key.shape[2])
        want = (self.batch, self.q_length, self.kv_length)
        if got != want:
            raise ValueError(
                f"{where}: (batch, queries, keys) are {got} but the mask was made for {want}; "
                "a cache that returns other lengths than it announces is not served"
            )

    def layout(
        self, device: torch.device, cu_seqlens: Tensor | None, position_ids: Tensor | None
    ) -> ops.TokenLayout | None:
        """The engine's layout, or None for plain causal attention over T = S tokens. Built once per
        forward.
        """
        if not self._built:
            self._layout = documents.build_layout(self, device, cu_seqlens, position_ids)
            self._built = True
        return self._layout


def _parts(function: Callable[..., Any]) -> list[str]:
    """Qualified names of a mask function and of all functions it closes over."""
    names, queue = [], [function]
    while queue:
        current = queue.pop()
        names.append(getattr(current, "__qualname__", repr(current)))
        for cell in getattr(current, "__closure__", None) or ():
            content = cell.cell_contents
            for item in content if isinstance(content, (tuple, list)) else (content,):
                if callable(item) and not isinstance(item, Tensor):
                    queue.append(item)
    return names


def _refuse_unknown(function: Callable[..., Any]) -> None:
    for name in _parts(function):
        for part, reason in _REFUSED_PARTS.items():
            if name.startswith(part):
                raise ValueError(f"this model asks for {reason}, which longspan's attention engine does not serve")
        if name not in _KNOWN_PARTS:
            raise ValueError(
                f"this model builds its attention mask with {name}, which longspan's attention engine does not know"
            )


def spec_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., Any],
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    attention_mask: Tensor | MaskSpec | None = None,
    local_size: int | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> MaskSpec:
    """The mask function registered with transformers: the facts of this forward as a `MaskSpec`.

    Raises ``ValueError`` for masks that the engine cannot express (bidirectional, chunked, custom overlays).
    """
    if isinstance(attention_mask, MaskSpec):
        return attention_mask
    compiling = torch.compiler.is_compiling()
    if use_vmap:
        raise ValueError(
            "this model adds a mask function of its own to the causal mask (or_mask_function, "
            "and_mask_function); longspan's attention engine does not serve it"
        )
    # Closures cannot be read while tracing; patch() ran the model eagerly before.
    if not compiling:
        _refuse_unknown(mask_function)
    if isinstance(q_offset, Tensor) and not compiling:
        q_offset = int(q_offset)
    packed = isinstance(q_offset, int) and q_offset == kv_offset == 0 and attention_mask is None
    doc = None
    if packed and q_length == kv_length and q_length > 1:
        doc = _probe_documents(mask_function, batch_size, q_length, device, local_size)
    return MaskSpec(
        batch=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        padding=attention_mask,
        doc=doc,
        window=local_size,
    )


def _probe_documents(
    mask_function: Callable[..., Any], batch: int, length: int, device: torch.device | str, window: int | None
) -> Tensor | None:
    """Document numbers [B, T] from the mask's sub-diagonal: a token that may not see its predecessor starts
    one.
    """
    if window == 1:
        return None  # no token sees its predecessor; every document structure gives the same pairs
    rows = torch.arange(batch, device=device)[:, None]
    queries = torch.arange(1, length, device=device)[None, :]
    sees = mask_function(rows, 0, queries, queries - 1)
    if sees.shape[0] == 1 and not torch.compiler.is_compiling() and sees.device.type == "cpu" and bool(sees.all()):
        return None
    starts = torch.nn.functional.pad((~sees).expand(batch, length - 1), (1, 0))
    return starts.cumsum(-1)
