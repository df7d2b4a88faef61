"""Plots of the results page, PNG and SVG, without a background of their own so that light and dark pages show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.results.tables import Table

OURS, THEIRS, TEXT = "#3b8fd4", "#9a9a9a", "#808080"
STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "text.color": TEXT,
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "longspan",  # the same file for the same figures
    "svg.fonttype": "none",  # text stays text
    "font.size": 9,
}


def bars(tables: Sequence[Table], key: str, label: str, folder: Path, name: str, line: float | None = None) -> None:
    """Horizontal bars of one figure of every row; the stock model's are grey. line: where equal is, of ratios."""
    shown = [
        (table.title, {row: figures[key] for row, figures in table.rows.items() if figures.get(key) is not None})
        for table in tables
    ]
    with _axes(0.8 + 0.26 * sum(len(rows) + 1 for _, rows in shown), folder, name) as axes:
        place, places, names = 0.0, [], []
        for title, rows in shown:
            axes.text(0, place, title, weight="bold", va="center", transform=axes.get_yaxis_transform())
            for row, value in rows.items():
                place += 1
                stock = row.startswith(("Hugging Face", "torch"))
                axes.barh(place, value, color=THEIRS if stock else OURS)
                axes.text(value, place, f" {value:.3g}", va="center")
                places.append(place)
                names.append(row.replace("`", ""))
            place += 1.4
        axes.set_yticks(places, names)
        axes.set_xlabel(label)
        axes.set_ylim(place - 0.6, -0.8)
        if line is not None:
            axes.set_xscale("log")
            axes.axvline(line, color=TEXT, linewidth=0.8)


def lines(table: Table, label: str, folder: Path, name: str) -> None:
    """A line a row over columns whose keys are lengths, both axes logarithmic; the stock model's are grey."""
    with _axes(5, folder, name) as axes:
        marks = iter("os^vD<>ph*X" * 3)
        for row, figures in table.rows.items():
            points = [(int(column.key), figures.get(column.key)) for column in table.columns]
            there = [(length, value) for length, value in points if value is not None]
            stock = row.startswith("Hugging Face")
            color = {"color": THEIRS} if stock else {}
            axes.plot(*zip(*there, strict=True), marker=next(marks), markersize=4, linewidth=1, label=row, **color)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = [int(column.key) for column in table.columns]
        axes.set_xticks(ticks, [f"{length:,}" for length in ticks])
        axes.set_xlabel("tokens")
        axes.set_ylabel(label)
        axes.legend(frameon=False)


def pairs(table: Table, first: str, second: str, label: str, folder: Path, name: str) -> None:
    """Two figures of every row beside each other: predicted and measured."""
    headings = {column.key: column.heading for column in table.columns}
    with _axes(1 + 0.6 * len(table.rows), folder, name) as axes:
        for shift, key, color in ((-0.2, first, THEIRS), (0.2, second, OURS)):
            values = [figures[key] / 2**30 for figures in table.rows.values()]
            axes.barh([i + shift for i in range(len(values))], values, 0.38, color=color, label=headings[key])
        axes.set_yticks(range(len(table.rows)), list(table.rows))
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.legend(frameon=False)


@contextmanager
def _axes(height: float, folder: Path, name: str) -> Iterator[Any]:
    """Axes of a figure that is saved as PNG and SVG at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
        yield axes
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{name}.png", dpi=130)
        figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
