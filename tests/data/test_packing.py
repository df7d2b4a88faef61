"""Cutting and packing lose nothing, overfill nothing, and waste little."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.data.packing import cut, pack


@given(st.integers(0, 500), st.integers(3, 64))
def test_pieces_tile_the_document(tokens: int, length: int) -> None:
    pieces = cut(tokens, length)
    assert [piece[0] for piece in pieces] == [0, *(piece[1] for piece in pieces)][: len(pieces)]
    assert sum(stop - start for start, stop in pieces) == tokens
    for start, stop in pieces:
        assert stop - start <= length
        assert stop - start >= min(2, tokens), "a piece of one token would have nothing to predict"
    assert len(pieces) == -(-tokens // length)


@given(st.integers(0, 500), st.integers(3, 64))
def test_full_pieces_are_all_of_the_length(tokens: int, length: int) -> None:
    pieces = cut(tokens, length, full_only=True)
    assert pieces == [(i * length, (i + 1) * length) for i in range(tokens // length)]


@given(st.lists(st.integers(1, 32)), st.integers(32, 64))
def test_packing_puts_each_piece_into_one_row_that_holds_it(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(piece for row in rows for piece in row) == list(range(len(lengths)))
    fills = [sum(lengths[piece] for piece in row) for row in rows]
    assert all(0 < fill <= capacity for fill in fills)
    # Best fit leaves no two rows that would fit into one.
    assert all(a + b > capacity for i, a in enumerate(fills) for b in fills[:i])
    assert pack(lengths, capacity) == rows


def test_packing_finds_the_perfect_fit() -> None:
    assert pack([6, 4, 5, 5, 7, 3], 10) == [[4, 5], [0, 1], [2, 3]]


@pytest.mark.parametrize("lengths", [[0], [4, 11]])
def test_pieces_that_fit_no_row_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match=r"piece \d has \d+ tokens; a row holds 1 to 10"):
        pack(lengths, 10)
