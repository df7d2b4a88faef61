"""Blocks of keys for blocks of queries: scores as sums over pairs of tokens, ranges and choice by brute force."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan import ops
from longspan.ops import AttentionPattern, BlockRanges, TokenLayout, block_select, code_hist, table_sums

BLOCK = 64


def codes(batch: int, heads: int, length: int, pieces: int, words: int, seed: int) -> tuple[Tensor, Tensor]:
    """Packed codes, and the numbers that they hold."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, heads, length, pieces * 4, generator=generator)
    book = torch.randn(1, pieces, words, 4, generator=generator)
    packed = ops.pq_encode(z, book)
    return packed, ops.unpack_codes(packed, pieces, words)


@pytest.mark.parametrize(("pieces", "words"), [(3, 4), (8, 16), (2, 40)])
def test_block_scores_are_sums_of_equal_codes(pieces: int, words: int) -> None:
    query_codes, q = codes(2, 4, 150, pieces, words, 0)
    key_codes, k = codes(2, 2, 130, pieces, words, 1)
    a, b = code_hist(query_codes, pieces, words), code_hist(key_codes, pieces, words)
    assert a.dtype == b.dtype == torch.int32
    equal = (q[:, :, :, None] == k.repeat_interleave(2, 1)[:, :, None]).sum(-1)  # [B,H,T,S]
    for row in range(3):
        for column in range(3):
            pairs = equal[..., row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK].sum((2, 3))
            found = (a[:, :, row] * b.repeat_interleave(2, 1)[:, :, column]).sum((2, 3))
            assert torch.equal(found, pairs)


def test_asymmetric_scores_are_sums_of_tables() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(1, 4, 140, 20, generator=generator), torch.randn(1, 2, 140, 20, generator=generator)
    book = torch.randn(2, 3, 16, 7, generator=generator)
    table, key_codes = ops.adc_table(q, book), ops.pq_encode(k, book)
    numbers = ops.unpack_codes(key_codes, 3, 16).repeat_interleave(2, 1)
    scores = torch.zeros(1, 4, 140, 140, dtype=torch.int64)
    for piece in range(3):
        picks = numbers[..., piece][:, :, None, :].expand(-1, -1, 140, -1)
        scores += table[..., piece, :].long().gather(3, picks)
    a, b = table_sums(table, 16), code_hist(key_codes, 3, 16).repeat_interleave(2, 1)
    for row, column in ((0, 0), (1, 0), (2, 1), (2, 2)):
        pairs = scores[..., row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK].sum((2, 3))
        assert torch.equal((a[:, :, row].long() * b[:, :, column]).sum((2, 3)), pairs)


def _layouts() -> dict[str, tuple[TokenLayout | None, int, int]]:
    packed = TokenLayout.packed(torch.tensor([0, 70, 70, 71, 200, 300]))
    left = torch.ones(2, 200, dtype=torch.bool)
    left[0, :80] = False
    left[1, 150:] = False
    rows = torch.arange(0, 300, 2)
    return {
        "one": (None, 300, 300),
        "packed": (packed, 300, 300),
        "padded": (TokenLayout.padded(left), 200, 200),
        "cached": (TokenLayout.cached(230, 70), 70, 300),
        "kept": (TokenLayout.rows(packed, rows), 150, 150),
        "kept queries": (TokenLayout(TokenLayout.rows(packed, rows).queries, packed.keys), 150, 300),
    }


def _visible(layout: TokenLayout | None, T: int, S: int, window: int | None) -> Tensor:
    if layout is None:
        layout = TokenLayout.cached(0, T)
    (doc, pos), (other, place) = layout.queries[:2, :, :, None], layout.keys[:2, :, None, :]
    return (doc == other) & (doc >= 0) & (place <= pos) & (pos - place < (window or 10**6))


@pytest.mark.parametrize("window", [None, 1, 90])
@pytest.mark.parametrize("name", _layouts())
def test_ranges_hold_what_is_visible(name: str, window: int | None) -> None:
    layout, T, S = _layouts()[name]
    ranges = BlockRanges.of(T, S, layout=layout, model_window=window)
    seen = _visible(layout, T, S, window)
    for batch in range(ranges.first.shape[0]):
        for row in range(-(-T // BLOCK)):
            columns = seen[batch, row * BLOCK : (row + 1) * BLOCK].any(0).nonzero().flatten() // BLOCK
            first, last = int(ranges.first[batch, row]), int(ranges.last[batch, row])
            if len(columns):
                assert (first, last) == (int(columns.min()), int(columns.max()) + 1)
            else:
                assert first == last


@pytest.mark.parametrize(("budget", "first", "recent"), [(3, 1, 1), (2, 0, 1), (1, 1, 1), (4, 2, 2), (9, 1, 1)])
def test_the_best_blocks_are_chosen(budget: int, first: int, recent: int) -> None:
    generator = torch.Generator().manual_seed(5)
    a = torch.randint(0, 3, (2, 6, 7, 2, 3), generator=generator, dtype=torch.int32)
    b = torch.randint(0, 3, (2, 2, 7, 2, 3), generator=generator, dtype=torch.int32)
    last = torch.arange(1, 8)[None]
    ranges = BlockRanges((last - 5).clamp(min=0), last)
    found = block_select(a, b, ranges, budget, first=first, recent=recent)
    assert found.shape == (2, 2, 7, min(budget, 7))
    score = torch.einsum("bkgimn,bkjmn->bkij", a.unflatten(1, (2, 3)).long(), b.long())
    for batch, head, row in ((x, y, z) for x in range(2) for y in range(2) for z in range(7)):
        low, high = int(ranges.first[0, row]), int(ranges.last[0, row])
        allowed = list(range(low, high))
        forced = [j for j in allowed if j < low + first or j >= high - recent]
        key = {j: (j in forced, int(score[batch, head, row, j]) if j not in forced else 0, j) for j in allowed}
        wanted = sorted(sorted(allowed, key=lambda j: key[j], reverse=True)[:budget])
        assert [j for j in found[batch, head, row].tolist() if j >= 0] == wanted
        assert found[batch, head, row].tolist() == wanted + [-1] * (min(budget, 7) - len(wanted))


@pytest.mark.parametrize("name", ["one", "packed"])
def test_attention_over_chosen_blocks(name: str) -> None:
    layout, T, _ = _layouts()[name]
    generator = torch.Generator().manual_seed(6)
    q, k, v = (torch.randn(1, h, T, 16, generator=generator, dtype=torch.float64) for h in (4, 2, 2))
    book = torch.randn(2, 2, 16, 8, generator=generator, dtype=torch.float64)
    sums, hist = table_sums(ops.adc_table(q, book), 16), code_hist(ops.pq_encode(k, book), 2, 16)
    ranges = BlockRanges.of(T, T, layout=layout)
    every = block_select(sums, hist, ranges, 5)
    dense = ops.attention(q, k, v, layout=layout)
    torch.testing.assert_close(ops.attention(q, k, v, AttentionPattern.listed(every, BLOCK), layout=layout), dense)
    some = block_select(sums, hist, ranges, 2)
    found = ops.attention(q, k, v, AttentionPattern.listed(some, BLOCK), layout=layout)
    kept = torch.zeros(1, 2, 5, 6, dtype=torch.bool).scatter_(3, torch.where(some < 0, 5, some).long(), True)[..., :5]
    wide = kept.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[:, :, :T, :T].repeat_interleave(2, 1)
    mask = _visible(layout, T, T, None)[:, None] & wide
    scores = (q @ k.repeat_interleave(2, 1).mT / 4).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(found, scores.softmax(-1) @ v.repeat_interleave(2, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": (1, 3, 4, 2, 3)}, "K a divisor of H"),
        ({"budget": 0}, "budget 0"),
        ({"recent": 0}, "recent 0"),
        ({"rows": 5}, r"ranges.first is torch.int64 of \(1, 5\) blocks"),
        ({"first": 2**31}, "below 2.31"),
        ({"dtype": torch.float32}, "queries are torch.float32"),
        ({"fill": -1}, "queries has -1; counts are not negative"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    shape, dtype = change.get("queries", (1, 4, 4, 2, 3)), change.get("dtype", torch.int32)
    queries = torch.full(shape, change.get("fill", 0), dtype=dtype)
    keys = torch.zeros(1, 2, 4, 2, 3, dtype=torch.int32)
    last = torch.arange(1, 1 + change.get("rows", 4))[None]
    options = {"first": change.get("first", 0), "recent": change.get("recent", 1)}
    with pytest.raises(ValueError, match=message):
        block_select(queries, keys, BlockRanges(last * 0, last), change.get("budget", 2), **options)


CODES = torch.full((1, 1, 3, 1), 7, dtype=torch.int32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: code_hist(CODES, 2, 4), "codes has code 7; there are 4 codewords"),
        (lambda: code_hist(CODES, 2, 16, block=0), "block is 0; it must have 1 token at least"),
        (lambda: table_sums(CODES[None], 4), "table is torch.int32"),
        (lambda: BlockRanges.of(4, 4, block=0), "a block have 1 token at least"),
        (lambda: BlockRanges.of(4, 4, model_window=-1), "model_window is -1"),
        (lambda: BlockRanges.of(4, 4, layout=TokenLayout.cached(0, 5)), r"layout is of \(5, 5\)"),
    ],
)
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
