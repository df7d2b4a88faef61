"""Cutting documents into pieces and packing pieces into rows."""

from __future__ import annotations

import bisect
from collections.abc import Sequence


def cut(tokens: int, length: int, *, full_only: bool = False) -> list[tuple[int, int]]:
    """Pieces [start, end) of a document of ``tokens`` tokens, each at most ``length`` (>= 3) long.

    Pieces are ``length`` long but for the last. A rest of one token would have nothing to predict, so the
    piece before it hands one over. With ``full_only`` only pieces of exactly ``length`` are given and the
    rest is left out.
    """
    full = tokens // length
    pieces = [(i * length, (i + 1) * length) for i in range(full)]
    rest = tokens - full * length
    if full_only or rest == 0:
        return pieces
    if rest == 1 and full:
        start, _ = pieces.pop()
        return [*pieces, (start, start + length - 1), (start + length - 1, tokens)]
    return [*pieces, (full * length, tokens)]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put pieces into rows of at most ``capacity`` tokens: best fit, longest first (Johnson 1973).

    Returns rows of piece indices, ascending within a row; every piece is in exactly one row. Deterministic.
    Raises ``ValueError`` for a piece that is empty or longer than a row.
    """
    rows: list[list[int]] = []
    free_rows: dict[int, list[int]] = {}  # free tokens -> rows that have exactly that many
    frees: list[int] = []  # the keys of free_rows, sorted
    for piece in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        size = lengths[piece]
        if not 0 < size <= capacity:
            raise ValueError(f"piece {piece} has {size} tokens; a row holds 1 to {capacity}")
        at = bisect.bisect_left(frees, size)
        if at == len(frees):
            row, free = len(rows), capacity
            rows.append([])
        else:
            free = frees[at]
            row = free_rows[free].pop()
            if not free_rows[free]:
                del free_rows[free], frees[at]
        rows[row].append(piece)
        left = free - size
        if left not in free_rows:
            free_rows[left] = []
            bisect.insort(frees, left)
        free_rows[left].append(row)
    return [sorted(row) for row in rows]
