"""Which blocks of keys a block of queries attends to: scores of pairs of blocks from the codes of their tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops._rows import readable
from longspan.ops.layout import TokenLayout
from longspan.ops.pattern import LIST_TILE, MOST, check_model_window
from longspan.ops.pq import unpack_codes

_APART = 2**31  # between the places of documents: positions are smaller


@dataclass(frozen=True)
class BlockRanges:
    """For each block of queries the blocks of keys, `first` up to and without `last`, that hold what it may see.

    int64 [1 or B, blocks of queries]; equal where there is nothing.
    """

    first: Tensor
    last: Tensor

    @classmethod
    def of(
        cls,
        queries: int,
        keys: int,
        *,
        layout: TokenLayout | None = None,
        model_window: int | None = None,
        block: int = LIST_TILE,
        device: torch.device | str | None = None,
    ) -> BlockRanges:
        """Of causal attention of `queries` tokens over `keys`; layout and model_window as `attention`. O(T log T).

        Raises ValueError for lengths and blocks that are not positive, and for a layout of other lengths.
        """
        if queries < 0 or keys < 0 or not 1 <= block <= MOST:
            raise ValueError(
                f"BlockRanges: queries is {queries}, keys {keys} and block {block}; lengths must not be "
                "negative, and a block have 1 token at least"
            )
        check_model_window("BlockRanges", model_window)
        if layout is None:
            if queries != keys:
                raise ValueError(f"BlockRanges: {queries} queries and {keys} keys need a layout")
            high = torch.arange(1, queries + 1, device=device)[None]
            low = torch.zeros_like(high) if not model_window else (high - model_window).clamp(min=0)
        else:
            lengths = layout.queries.shape[-1], layout.keys.shape[-1]
            if lengths != (queries, keys):
                raise ValueError(f"BlockRanges: layout is of {lengths}; queries is {queries} and keys {keys}")
            low, high = _spans(layout, model_window or _APART)
        nothing = high <= low
        low, high = low.masked_fill(nothing, keys), high.masked_fill(nothing, 0)
        first = _by_block(low, block, keys).amin(2) // block
        last = -(-_by_block(high, block, 0).amax(2) // block)
        return cls(torch.minimum(first, last), last)


def _spans(layout: TokenLayout, window: int) -> tuple[Tensor, Tensor]:
    """The first key that each query sees, and the one behind the last: [1 or B, T], high <= low for nothing."""
    (query_doc, query_pos), (key_doc, key_pos) = layout.queries[:2].long(), layout.keys[:2].long()
    place = torch.where(key_doc >= 0, key_doc * _APART + key_pos, -1)
    # Padding belongs to the document before it for the first key, and to the one behind it for the last.
    rising = place.cummax(1).values.contiguous()
    behind = torch.where(key_doc >= 0, place, torch.iinfo(torch.int64).max).flip(1).cummin(1).values.flip(1)
    oldest = query_doc * _APART + (query_pos - window + 1).clamp(min=0)
    newest = query_doc * _APART + query_pos
    rows = max(rising.shape[0], oldest.shape[0])
    rising, behind, oldest, newest = (x.expand(rows, -1).contiguous() for x in (rising, behind, oldest, newest))
    low, high = torch.searchsorted(rising, oldest), torch.searchsorted(behind, newest, right=True)
    return low, high.masked_fill(query_doc < 0, 0)


def _by_block(x: Tensor, block: int, fill: int) -> Tensor:
    blocks = -(-x.shape[1] // block)
    return torch.nn.functional.pad(x, (0, blocks * block - x.shape[1]), value=fill).unflatten(1, (blocks, block))


def _check_block(name: str, block: int) -> None:
    if not 1 <= block <= MOST:
        raise ValueError(f"{name}: block is {block}; it must have 1 token at least")


@torch.no_grad()
def code_hist(codes: Tensor, subspaces: int, codewords: int, *, block: int = LIST_TILE) -> Tensor:
    """How many of a block's tokens have each code: int32 [B,H,blocks,M,E] of codes int32 [B,H,T,W].

    For histograms A of queries and C of keys, sum_me A[I,m,e] C[J,m,e] is the sum over all pairs of tokens of I and J
    of the number of their equal codes. Exact on every device. Raises ValueError for what does not fit.
    """
    _check_block("code_hist", block)
    if codes.dim() != 4:
        raise ValueError(f"code_hist: codes has shape {tuple(codes.shape)}; it must be [B,H,T,W]")
    numbers = unpack_codes(codes, subspaces, codewords)
    batch, heads, length, _ = numbers.shape
    blocks = -(-length // block)
    token = torch.arange(length, device=codes.device) // block
    place = (token[:, None] * subspaces + torch.arange(subspaces, device=codes.device)) * codewords + numbers
    found = torch.zeros(batch, heads, blocks * subspaces * codewords, dtype=torch.int32, device=codes.device)
    found.scatter_add_(2, place.flatten(2), torch.ones_like(place, dtype=torch.int32).flatten(2))
    return found.reshape(batch, heads, blocks, subspaces, codewords)


@torch.no_grad()
def table_sums(table: Tensor, codewords: int, *, block: int = LIST_TILE) -> Tensor:
    """The sum over a block's queries of their tables: int32 [B,H,blocks,M,E] of `adc_table`'s uint8 [B,H,T,M,entries].

    What `code_hist` of the queries is for equal codes, these are for asymmetric scores. Raises ValueError for what does
    not fit.
    """
    _check_block("table_sums", block)
    if table.dim() != 5 or table.dtype != torch.uint8 or not 1 <= codewords <= table.shape[4]:
        raise ValueError(
            f"table_sums: table is {table.dtype} {tuple(table.shape)} and codewords {codewords}; it must be uint8 "
            "[B,H,T,M,entries] of at least as many entries"
        )
    length = table.shape[2]
    blocks = -(-length // block)
    table = torch.nn.functional.pad(table[..., :codewords], (0, 0, 0, 0, 0, blocks * block - length))
    return table.unflatten(2, (blocks, block)).sum(3, dtype=torch.int32)


@torch.no_grad()
def block_select(
    queries: Tensor, keys: Tensor, ranges: BlockRanges, budget: int, *, first: int = 0, recent: int = 1
) -> Tensor:
    """The blocks of keys with the highest scores of each block of queries, as `AttentionPattern.listed` takes them.

        score[I,J] = sum over the heads of a key head, m and e of queries[I,m,e] keys[J,m,e]

    queries: int32 [B,H,I,M,E] (`code_hist`, or `table_sums` for asymmetric scores); keys: int32 [B,K,J,M,E]
    (`code_hist`), K divides H; ranges: what a block may see. Of those blocks the `first` first and the `recent` last
    ones are kept in any case, and the best of the others up to `budget` blocks in all, the newest of equal ones.
    Returns int32 [B,K,I,budget], increasing, -1 behind the last. Integers decide: the same on every device.

    Raises ValueError for what does not fit. Source: SPT (arXiv 2312.10365) has no blocks; the identity is ours.
    """
    for name, x in (("queries", queries), ("keys", keys)):
        if x.dim() != 5 or x.dtype != torch.int32 or x.device != queries.device:
            raise ValueError(
                f"block_select: {name} are {x.dtype} {tuple(x.shape)} on {x.device}; they must be int32 "
                "[B,heads,blocks,M,E] on one device"
            )
        if readable(x) and x.numel() and int(x.min()) < 0:
            raise ValueError(f"block_select: {name} has {int(x.min())}; counts are not negative")
    batch, heads, rows = queries.shape[:3]
    key_heads, columns = keys.shape[1:3]
    if queries.shape[3:] != keys.shape[3:] or key_heads < 1 or heads % key_heads or keys.shape[0] != batch:
        raise ValueError(
            f"block_select: queries are {tuple(queries.shape)} and keys {tuple(keys.shape)}; they must be [B,H,I,M,E] "
            "and [B,K,J,M,E], K a divisor of H"
        )
    if not (1 <= budget <= MOST and 0 <= first <= MOST and 1 <= recent <= MOST):
        raise ValueError(
            f"block_select: budget {budget} and recent {recent} must be at least 1, first {first} at least 0, and all "
            "below 2^31"
        )
    for name, x in (("ranges.first", ranges.first), ("ranges.last", ranges.last)):
        if x.dtype != torch.int64 or x.shape not in ((1, rows), (batch, rows)) or x.device != queries.device:
            raise ValueError(
                f"block_select: {name} is {x.dtype} of {tuple(x.shape)} blocks on {x.device}; it must be int64 of "
                f"{(batch, rows)} on {queries.device}"
            )
    slots = min(budget, columns)
    # Sums of at most 2^53: float64 products are exact, and fast on every device.
    grouped = queries.unflatten(1, (key_heads, -1)).sum(2).flatten(3).double()
    wanted = keys.flatten(3).double()
    number = torch.arange(columns, device=keys.device)
    low, high = ranges.first[..., None], ranges.last[..., None]
    allowed = (number >= low) & (number < high)
    forced = allowed & ((number < low + first) | (number >= high - recent))
    best = []
    for head in range(key_heads):  # one head's scores at a time
        score = (grouped[:, head] @ wanted[:, head].mT).long() * columns + number
        score = torch.where(forced, torch.iinfo(torch.int64).max - columns + number, score)
        score = torch.where(allowed, score, number - columns)  # below every score, and all different
        chosen = score.topk(slots, -1, sorted=False)
        place = torch.where(chosen.values >= 0, chosen.indices, columns).sort(-1).values
        best.append(torch.where(place < columns, place, -1))
    return torch.stack(best, 1).int()
