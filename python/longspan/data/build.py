"""From the ``data`` section of a recipe to training rows and held-out rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from longspan.data.config import DataConfig
from longspan.data.rows import Rows
from longspan.data.sources import open_source
from longspan.data.store import TokenStore, open_store


class Built(NamedTuple):
    """Training rows and held-out rows; ``held_out`` is None when the recipe keeps no document."""

    train: Rows
    held_out: Rows | None


def build(
    config: DataConfig,
    tokenizer: Any,
    seed: int = 0,
    *,
    vocab_size: int | None = None,
    cache_dir: str | Path | None = None,
) -> Built:
    """Read, tokenise (or take from the cache), split by document and pack what ``config`` describes.

    The order of training rows follows from ``seed``. Which documents are held out follows from their
    content alone, so it is the same for every seed and every order of files. ``vocab_size`` is the model's
    (default: the tokenizer's).

    Raises ``FileNotFoundError`` for sources that do not exist and ``ValueError`` for records, documents and
    ids that cannot be used, naming the place.
    """
    store = open_store(open_source(config.train), config.format, tokenizer, cache_dir)
    _check_vocabulary(store, vocab_size if vocab_size is not None else len(tokenizer))
    if isinstance(config.held_out, str):
        other = open_store(open_source(config.held_out), config.format, tokenizer, cache_dir)
        _check_vocabulary(other, vocab_size if vocab_size is not None else len(tokenizer))
        kept, held = list(range(len(store))), list(range(len(other)))
    else:
        other = store
        kept, held = split(store, config.held_out)
    train = _rows(config, config.train, store, kept, seed)
    # Held-out rows have one order for all seeds, so that the first few of them are always the same.
    where = config.held_out if isinstance(config.held_out, str) else f"the held-out part of {config.train}"
    return Built(train, _rows(config, where, other, held, 0) if held else None)


def split(store: TokenStore, share: float) -> tuple[list[int], list[int]]:
    """Documents to train on and to hold out, by the rank of the hash of their content; copies stay together.

    Raises ``ValueError`` when a share is wanted and there are fewer than two different documents.
    """
    everything = list(range(len(store)))
    if share == 0:
        return everything, []
    digests = [bytes(digest) for digest in store.digests]
    distinct = sorted(set(digests))
    if len(distinct) < 2:
        raise ValueError(
            f"{store.about['source']!r} holds {len(distinct)} different document, so none can be held out; "
            "set data.held_out to 0 or to a file"
        )
    held = set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])
    return (
        [index for index in everything if digests[index] not in held],
        [index for index in everything if digests[index] in held],
    )


def _check_vocabulary(store: TokenStore, vocab_size: int) -> None:
    if store.about["largest_id"] >= vocab_size:
        raise ValueError(
            f"{store.about['largest_id_at']}: token id {store.about['largest_id']} is outside the "
            f"vocabulary of "
            f"{vocab_size} tokens; the tokenizer does not belong to the model"
        )


def _rows(config: DataConfig, where: str, store: TokenStore, documents: list[int], seed: int) -> Rows:
    # Rows of the demo corpus are all equally long, so that seconds per step can be compared.
    full_only = config.packing == "none" and store.about["source"] == "demo"
    rows = Rows(store, documents, config.length, packing=config.packing, seed=seed, full_only=full_only)
    if len(rows) == 0:
        sizes = store.offsets[1:] - store.offsets[:-1]
        longest = int(sizes[documents].max()) if documents else 0
        raise ValueError(
            f"{where} gives no row of {config.length} tokens: its longest document has {longest} tokens in "
            f"{len(documents)} documents; use a smaller data.length or packing: documents"
        )
    return rows
