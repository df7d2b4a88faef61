"""Training steps from 1k to 64k tokens: what bench/lengths recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.race import exponent
from bench.results.methods import table_of
from bench.results.tables import Column, Format, Table, fixed, gib, loss, seconds

# Ways whose loss after the same 60 steps at 2048 tokens another record has: (file, run).
QUALITY = {
    "longspan, dense": ("spt", "longspan, dense"),
    "LeMo, dense forward": ("lemo", "forward dense, random, 0.4"),
    "LeMo, eliminate": ("lemo", "eliminate, predictor, 0.4, later half"),
    "SPT, codes in blocks": ("spt", "pq, adc, block"),
    "SPT, routed feed-forward": ("spt", "routed, calibrated"),
}
LONG = 8192  # shorter rows say little of growth: the head and the products of weights outweigh attention


def lengths(records: Mapping[str, Any]) -> list[Table]:
    """Seconds, memory and first losses by way and length; exponents, longest rows, losses after training."""
    result = records["lengths"]["steps"]["result"]
    ways: dict[str, dict[str, Any]] = result["ways"]
    limit = result["limit_bytes"] / 2**30
    found = []
    note = (
        f"Forward and backward of one row, each in its own process that may allocate {limit:.0f} GiB; longspan has the "
        "least recomputation that fits. Where a way did not fit, or was not run, the cell is empty."
    )
    shown: tuple[tuple[str, str, Format], ...] = (
        ("seconds", "Seconds of a step by length", seconds),
        ("peak_rss", "Largest resident set of a step by length, GiB", gib),
        ("loss", "Loss of the first step by length", loss),
        ("recompute", "What is computed again", str),
    )
    every = sorted({int(n) for cells in ways.values() for n in cells})
    for key, title, write in shown:
        columns = tuple(Column(str(n), f"{n} tokens", write) for n in every)
        rows = {name: {n: cell.get(key) for n, cell in cells.items()} for name, cells in ways.items()}
        found.append(table_of(records, "lengths", "steps", title, note, columns, rows))
    return [*found, *_summary(records, ways)]


def _summary(records: Mapping[str, Any], ways: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """How time grows, what fits, what is learned."""
    longest = records["lengths"]["longest"]["result"]
    rows: dict[str, dict[str, Any]] = {}
    for name, cells in ways.items():
        timed = {int(n): cell["seconds"] for n, cell in cells.items() if cell["fits"] and int(n) >= LONG}
        rows[name] = {"tokens": longest["ways"][name]["tokens"]}
        if len(timed) > 1:
            rows[name]["exponent"] = exponent(sorted(timed), [timed[n] for n in sorted(timed)])
        file, run = QUALITY.get(name, ("", ""))
        if file:
            runs = records[file]["quality"]["result"]["runs"]
            rows[name]["held_out"] = runs.get(run, {}).get("held_out_after")
    columns = (
        Column("exponent", f"from {LONG} tokens on, time grows as T to the", fixed(2)),
        Column("tokens", "longest row that fits, by `longspan plan`", str),
        Column("held_out", "held-out loss after 60 steps at 2048 tokens", loss),
    )
    limit = longest["limit_bytes"] / 2**30
    note = f"Longest rows in {limit:.0f} GiB with layers computed again; losses are evaluated densely."
    return [table_of(records, "lengths", "longest", "Growth, longest rows, loss", note, columns, rows)]
