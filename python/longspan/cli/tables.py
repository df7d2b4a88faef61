"""Results as rich tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def facts(title: str, rows: Mapping[str, Any]) -> Table:
    """Two columns: what, and its value."""
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def perplexity(title: str, scores: Mapping[int, Mapping[str, Any]]) -> Table:
    """Loss and perplexity by context length."""
    table = Table(title=title, title_justify="left")
    for name in ("context (tokens)", "loss (nats)", "perplexity", "tokens counted"):
        table.add_column(name, justify="right")
    for length, score in scores.items():
        table.add_row(str(length), f"{score['loss']:.4f}", f"{score['ppl']:.3f}", str(score["tokens"]))
    return table


def passkey(title: str, found: Mapping[int, Mapping[str, Any]]) -> Table:
    """Accuracy by length, in all and by depth."""
    table = Table(title=title, title_justify="left")
    table.add_column("length (tokens)", justify="right")
    table.add_column("accuracy", justify="right")
    for band in next(iter(found.values()))["by_depth"]:
        table.add_column(f"depth {band}", justify="right")
    for length, result in found.items():
        bands = ["-" if share is None else f"{share:.0%}" for share in result["by_depth"].values()]
        table.add_row(str(length), f"{result['accuracy']:.0%}", *bands)
    return table


def size(count: float) -> str:
    """Bytes for people: '1.25 GB'."""
    for unit, step in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= step:
            return f"{count / step:.2f} {unit}"
    return f"{count:.0f} B"
