"""Plots of the results page, PNG and SVG, without a background of their own so that light and dark pages show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    "font.size": 9,
}


def bars(tables: Sequence[Table], key: str, label: str, folder: Path, name: str, line: float | None = None) -> None:
    """Horizontal bars of one figure of every row; the stock model's are grey. line: where equal is, of ratios."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [
        (row, figures[key], table.title)
        for table in tables
        for row, figures in table.rows.items()
        if figures.get(key) is not None
    ]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.26 * (len(rows) + len(tables))), layout="constrained")
        place, places, names = 0.0, [], []
        for table in tables:
            own = [(row, value) for row, value, title in rows if title == table.title]
            axes.text(0, place, table.title, weight="bold", va="center", transform=axes.get_yaxis_transform())
            for row, value in own:
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
        _save(figure, folder, name)


def pairs(table: Table, first: str, second: str, label: str, folder: Path, name: str) -> None:
    """Two figures of every row beside each other: predicted and measured."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(9, 1 + 0.6 * len(table.rows)), layout="constrained")
        headings = {column.key: column.heading for column in table.columns}
        for i, figures in enumerate(table.rows.values()):
            axes.barh(i - 0.2, figures[first] / 2**30, 0.38, color=THEIRS, label=headings[first] if i == 0 else None)
            axes.barh(i + 0.2, figures[second] / 2**30, 0.38, color=OURS, label=headings[second] if i == 0 else None)
        axes.set_yticks(range(len(table.rows)), list(table.rows))
        axes.invert_yaxis()
        axes.set_xlabel(label)
        axes.legend(frameon=False)
        _save(figure, folder, name)


def _save(figure: Any, folder: Path, name: str) -> None:
    from matplotlib import pyplot

    folder.mkdir(parents=True, exist_ok=True)
    metadata: Mapping[str, Any] = {"svg": {"Date": None}, "png": {}}
    for kind in ("png", "svg"):
        figure.savefig(folder / f"{name}.{kind}", dpi=130, metadata=metadata[kind])
    pyplot.close(figure)
