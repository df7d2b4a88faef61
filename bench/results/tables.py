"""A table of results, as Markdown and as data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Format = Callable[[Any], str]


def fixed(digits: int, unit: str = "") -> Format:
    """A number with so many digits behind the point."""
    return lambda value: f"{value:.{digits}f}{unit}"


def seconds(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.3g}"


def percent(value: float) -> str:
    """A share."""
    return f"{100 * value:.0f} %"


def gib(value: float) -> str:
    """Bytes as GiB."""
    return f"{value / 2**30:.2f}"


def mb(value: float) -> str:
    """Bytes as 10^6 bytes."""
    return f"{value / 1e6:.1f}"


times = fixed(2, "x")
loss = fixed(4)


@dataclass(frozen=True)
class Column:
    """What a column shows: the key of a row's figures, its heading, and how the number is written."""

    key: str
    heading: str
    write: Format


@dataclass(frozen=True)
class Table:
    """Rows by name under a title; every row was measured by `command`."""

    title: str
    note: str
    command: str
    columns: tuple[Column, ...]
    rows: Mapping[str, Mapping[str, Any]]
    environment: Mapping[str, Any]

    def markdown(self) -> str:
        """Heading, note, command and rows; a figure that a row lacks stays empty."""
        lines = [f"### {self.title}", "", f"{self.note} `{self.command}` {_machine(self.environment)}", ""]
        lines += [
            "| | " + " | ".join(column.heading for column in self.columns) + " |",
            "|---" * (len(self.columns) + 1) + "|",
        ]
        for name, figures in self.rows.items():
            cells = [name, *(_cell(figures, column) for column in self.columns)]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, ""])

    def data(self) -> dict[str, Any]:
        """For JSON: the figures as recorded."""
        keys = [column.key for column in self.columns]
        return {
            "title": self.title,
            "command": self.command,
            "environment": dict(self.environment),
            "rows": {name: {key: figures.get(key) for key in keys} for name, figures in self.rows.items()},
        }


def _cell(figures: Mapping[str, Any], column: Column) -> str:
    value = figures.get(column.key)
    return "" if value is None else column.write(value)


def _machine(environment: Mapping[str, Any]) -> str:
    """Where and on what."""
    dirty = " with changes" if environment.get("dirty") else ""
    return (
        f"*{environment['device']}, {environment['threads']} threads, {environment['isa']}, torch "
        f"{environment['torch']}, commit {environment['commit']}{dirty}.*"
    )


def page(sections: Mapping[str, Sequence[Table]]) -> str:
    """Markdown of tables under headings."""
    return "\n".join(
        f"## {heading}\n\n" + "\n".join(table.markdown() for table in tables) for heading, tables in sections.items()
    )
