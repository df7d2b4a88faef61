"""From rows to one flattened batch: no padding ever exists, boundaries travel as cumulative lengths."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import torch

from longspan.data.rows import IGNORED, Row


def collate(rows: Sequence[Row]) -> dict[str, Any]:
    """Join rows into one of N tokens and D documents.

    Returns int64 ``input_ids``, ``labels``, ``position_ids`` [1, N], int32 ``cu_seq_lens_q``,
    ``cu_seq_lens_k`` [D + 1] and int ``max_length_q``, ``max_length_k``. Labels line up with ids (the model
    shifts them); the first of each document is -100, since nothing of its document precedes it. Positions
    restart at each document. Raises ``ValueError`` for no rows and for rows whose three lengths disagree.
    """
    if not rows:
        raise ValueError("collate needs at least one row")
    for index, row in enumerate(rows):
        tokens, marks, lengths = len(row["input_ids"]), len(row["labels"]), row["doc_lengths"]
        if not tokens == marks == sum(lengths) or min(lengths, default=0) < 1:
            raise ValueError(
                f"row {index}: {tokens} input_ids, {marks} labels and doc_lengths {lengths} (sum "
                f"{sum(lengths)}) "
                "must agree, and each document needs a token"
            )
    lengths = list(chain.from_iterable(row["doc_lengths"] for row in rows))
    starts = [0, *accumulate(lengths)]
    input_ids = torch.tensor([list(chain.from_iterable(row["input_ids"] for row in rows))], dtype=torch.int64)
    labels = torch.tensor([list(chain.from_iterable(row["labels"] for row in rows))], dtype=torch.int64)
    labels[0, starts[:-1]] = IGNORED
    position_ids = torch.cat([torch.arange(length) for length in lengths])[None]
    boundaries = torch.tensor(starts, dtype=torch.int32)
    return {
        "input_ids": input_ids,
        "labels": labels,
        "position_ids": position_ids,
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries.clone(),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
