"""Two record files side by side: joined on key, route, mode, device and threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from bench.table import rendered

DEFAULT_LOSS = 0.10


@dataclass(frozen=True)
class Line:
    """One joined row. ratio: new / old median seconds; apart: the [p20, p80] intervals do not overlap."""

    key: str
    impl: str
    old: float
    new: float
    apart: bool
    dirty: str

    @property
    def ratio(self) -> float:
        """Above 1 is slower."""
        return self.new / self.old


def identity(row: dict[str, Any]) -> tuple[Any, ...]:
    """What two records must share to be compared."""
    env = row["env"]
    return row["key"], row["impl"], row["mode"], env["device"], env["threads"]


def newest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last record of each identity, of those that were timed."""
    return [row for row in {identity(row): row for row in rows}.values() if row["time_s"] is not None]


def latest(rows: list[dict[str, Any]], name: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """The last record of each identity. Raises ValueError when one of them failed its correctness check."""
    found = {identity(row): row for row in rows}
    red = [row["key"] for row in found.values() if not row["gate"]["passed"] or row["time_s"] is None]
    if red:
        raise ValueError(f"{name}: no comparison of rows whose correctness check failed: {', '.join(red)}")
    return found


def join(old: list[dict[str, Any]], new: list[dict[str, Any]], names: tuple[str, str] = ("old", "new")) -> list[Line]:
    """The rows that both files have. Raises ValueError when a gate is red or when nothing is shared."""
    before, after = latest(old, names[0]), latest(new, names[1])
    lines = []
    for key, row in after.items():
        if key not in before:
            continue
        a, b = before[key]["time_s"], row["time_s"]
        apart = a["p80"] < b["p20"] or b["p80"] < a["p20"]
        dirty = [name for name, r in zip(names, (before[key], row), strict=True) if r["env"]["dirty"]]
        lines.append(Line(row["key"], row["impl"], a["median"], b["median"], apart, " and ".join(dirty)))
    if not lines:
        raise ValueError(f"{names[0]} and {names[1]} share no row (same key, route, device and threads)")
    return lines


def slower(lines: list[Line], loss: float) -> list[Line]:
    """The rows that lost more than `loss` with intervals that do not overlap."""
    return [line for line in lines if line.apart and line.ratio > 1 + loss]


def table(lines: list[Line], loss: float) -> str:
    """The comparison as text."""
    shown = Table("key", "impl", "old ms", "new ms", "new / old", "[p20, p80]", "tree", box=None)
    for line in lines:
        mark = " SLOWER" if line in slower([line], loss) else ""
        overlap = "apart" if line.apart else "overlap"
        dirty = f"dirty: {line.dirty}" if line.dirty else "clean"
        times = f"{line.old * 1e3:.2f}", f"{line.new * 1e3:.2f}"
        shown.add_row(line.key, line.impl, *times, f"{line.ratio:.3f}{mark}", overlap, dirty)
    return rendered(shown)
