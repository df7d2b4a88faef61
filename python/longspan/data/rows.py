"""Rows: the map-style dataset that the trainer reads, with exact document boundaries."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from longspan.data.packing import cut, pack
from longspan.data.store import TokenStore

IGNORED = -100


class Row(TypedDict):
    """``labels`` line up with ``input_ids`` (not shifted), -100 is ignored; ``doc_lengths`` sums to their length."""

    input_ids: list[int]
    labels: list[int]
    doc_lengths: list[int]


@dataclass(frozen=True)
class RowStats:
    """What became of the documents; tokens of ``left_out`` pieces (no label in them) are in no row."""

    documents: int
    pieces: int
    left_out: int
    rows: int
    tokens: int
    labels: int


class Rows:
    """Rows of at most ``length`` tokens out of some documents of a store; picklable, deterministic in ``seed``.

    ``packing`` documents: long documents are cut, pieces fill rows best fit; no token of a text is lost,
    and of other formats only pieces without a label are left out (counted in ``stats``). ``packing`` none:
    one piece a row, and with ``full_only`` only pieces of exactly ``length``. Every row has at least one
    label that something precedes.
    """

    def __init__(
        self,
        store: TokenStore,
        documents: Sequence[int],
        length: int,
        *,
        packing: str,
        seed: int,
        full_only: bool = False,
    ) -> None:
        self.store, self.length = store, length
        self.document_indices = list(documents)
        offsets, marks = store.offsets, store.marks
        pieces: list[tuple[int, int]] = []
        left_out = 0
        for document in documents:
            begin, end = int(offsets[document]), int(offsets[document + 1])
            for start, stop in cut(end - begin, length, full_only=full_only):
                span = (begin + start, begin + stop)
                if marks is None or marks[span[0] + 1 : span[1]].any():
                    pieces.append(span)
                else:
                    left_out += 1
        if packing == "documents":
            rows = pack([stop - start for start, stop in pieces], length)
        else:
            rows = [[index] for index in range(len(pieces))]
        random.Random(seed).shuffle(rows)
        self._starts = np.asarray([span[0] for span in pieces], np.int64)
        self._stops = np.asarray([span[1] for span in pieces], np.int64)
        self._pieces = np.asarray([piece for row in rows for piece in row], np.int64)
        self._ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        self.stats = RowStats(
            documents=len(self.document_indices),
            pieces=len(pieces),
            left_out=left_out,
            rows=len(rows),
            tokens=int((self._stops - self._starts).sum()),
            labels=sum(self._labels_in(*span) for span in pieces),
        )

    def _labels_in(self, start: int, stop: int) -> int:
        # The first token of a piece has no context, so its label never counts.
        marks = self.store.marks
        return stop - start - 1 if marks is None else int(marks[start + 1 : stop].sum())

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index = int(index) % len(self)
        first = int(self._ends[index - 1]) if index else 0
        row = Row(input_ids=[], labels=[], doc_lengths=[])
        for piece in self._pieces[first : int(self._ends[index])]:
            start, stop = int(self._starts[piece]), int(self._stops[piece])
            ids = self.store.ids[start:stop]
            marks = self.store.marks
            labels = ids if marks is None else np.where(marks[start:stop], ids, IGNORED)
            row["input_ids"] += ids.tolist()
            row["labels"] += labels.tolist()
            row["doc_lengths"].append(stop - start)
        return row

    def documents(self, *, at_least: int = 1) -> list[list[int]]:
        """Whole documents (token ids), as evaluation by context length wants them, those of ``at_least`` tokens."""
        offsets, ids = self.store.offsets, self.store.ids
        spans = ((int(offsets[index]), int(offsets[index + 1])) for index in self.document_indices)
        return [ids[start:stop].tolist() for start, stop in spans if stop - start >= at_least]
