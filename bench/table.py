"""Records as text tables."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console
from rich.table import Column, Table

from bench.record import Record

WIDTH = 200


def rendered(table: Table) -> str:
    """The table as plain text."""
    console = Console(file=io.StringIO(), width=WIDTH, force_terminal=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().rstrip()


def short(key: str) -> str:
    """The op and its sizes, without what all rows of this version share."""
    return key.replace("attention_fwd+attention_bwd", "attention").replace("|cpu|float32|", " ").replace("B=1,", "")


def rows_table(rows: Sequence[Record]) -> str:
    """One line a record: median time, share of the matrix-product rate, ratio to each baseline, targets."""
    table = Table(
        Column("op and sizes", no_wrap=True),
        "impl",
        "ms",
        "GFLOP/s",
        "of roofline",
        "peak MB",
        "baseline / ours",
        "target",
        box=None,
    )
    for row in rows:
        seconds = row.time_s.median if row.time_s else None
        rate = f"{row.flops / seconds / 1e9:.0f}" if seconds and row.flops else ""
        ratios = ", ".join(f"{name} {b.ratio:.2f}x" for name, b in row.baselines.items())
        targets = ", ".join(f"{name}: {'met' if met else 'not met'}" for name, met in row.targets.items())
        table.add_row(
            short(row.key),
            row.impl,
            f"{seconds * 1e3:.1f}" if seconds else "RED: " + str(row.gate),
            rate,
            f"{row.of_roofline:.0%}" if row.of_roofline else "",
            f"{row.memory['peak_live_bytes'] / 1e6:.1f}" if row.memory else "",
            ratios,
            targets,
        )
    return rendered(table)
