"""Writes docs/results.md, results_parts.md, results.json and figures from bench/records: `make results`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.record import RECORDS, ROOT, read
from bench.results import forms, kernels, lengths, methods, plots
from bench.results.tables import Table, page

PARTS = ("demo", "lean_layers", "lemo", "lengths", "long_context", "memory_plan", "spt", "updates")
HEAD = """# Results

Every figure of `bench/records`, written by `make results`; the same as data: [results.json](results.json). Commands are
run in the environment that `make test` makes (`.venv/bin/python`). The machine is shared, so only figures of one table,
which were taken in turns, are to be compared. No GPU was there: [what the compiler made of the CUDA kernels, and
predicted times for three GPUs](cuda_figures.md), are predictions, not measurements. [Parts of methods, and every
op by size](results_parts.md), have a page of their own.

![Training steps](figures/steps.svg)

![Kernels](figures/kernels.svg)

![Predicted and measured memory](figures/memory.svg)

"""

PARTS_HEAD = """# Results: parts of methods, kernels

The second part of [the results](results.md): sparse attention and halves of layers by themselves, how time grows with
length, and the newest record of every op on every size, also without torch.

"""
PARTS_HEADINGS = ("Sparse attention", "Parts of a layer", "Growth", "Kernels")


def records(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of kernels of all machines, and the parts by file."""
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in read(path)]
    files = {name: folder / f"{name}.json" for name in PARTS}
    return rows, {name: json.loads(path.read_text(encoding="utf-8")) for name, path in files.items() if path.is_file()}


def sections(folder: Path = RECORDS) -> dict[str, list[Table]]:
    """All tables by heading."""
    rows, parts = records(folder)
    by_length = {"From 1k to 64k tokens": lengths.lengths(parts)} if "lengths" in parts else {}
    return {
        "Demo": methods.demo(parts),
        **by_length,
        "Training steps": methods.steps(parts),
        "Twice the context": methods.long_context(parts),
        "Memory": [*methods.longest(parts), *methods.memory(parts)],
        "Held-out loss": methods.quality(parts),
        "Optimiser steps of a whole model": [*methods.updates(parts), *forms.freezing(parts)],
        "Sparse attention": forms.attention(parts),
        "Parts of a layer": forms.layers(parts),
        "Growth": kernels.growth(rows),
        "Kernels": kernels.tables(rows),
    }


def pages(tables: dict[str, list[Table]]) -> dict[str, str]:
    """Text by file of docs."""
    rest = {heading: each for heading, each in tables.items() if heading not in PARTS_HEADINGS}
    own = {heading: tables[heading] for heading in PARTS_HEADINGS}
    return {"results.md": HEAD + page(rest), "results_parts.md": PARTS_HEAD + page(own)}


def draw(tables: dict[str, list[Table]], folder: Path) -> None:
    """All plots."""
    steps = [table for table in tables["Training steps"] if "A step" in table.title]
    for seconds in tables.get("From 1k to 64k tokens", [])[:1]:
        plots.lines(seconds, "seconds of a training step", folder, "lengths")
    plots.bars(steps, "seconds", "seconds of a training step", folder, "steps")
    plots.bars(_best(tables["Kernels"]), "best", "time of the strongest baseline / ours", folder, "kernels", line=1.0)
    memory = next(table for table in tables["Memory"] if table.title.startswith("Predicted"))
    plots.pairs(memory, "predicted_bytes", "live_bytes", "GiB", folder, "memory")


def _best(tables: Sequence[Table]) -> list[Table]:
    """Rows of torch ops with the ratio to their strongest baseline."""
    found = []
    for table in tables:
        rows = {
            name: {"best": min(figures["ratios"].values())}
            for name, figures in table.rows.items()
            if figures["ratios"] and not name.endswith("no torch")
        }
        found.append(replace(table, columns=(), rows=rows))
    return [table for table in found if table.rows]


def main() -> None:
    """Writes the page."""
    tables = sections()
    docs = ROOT / "docs"
    for name, text in pages(tables).items():
        (docs / name).write_text(text, encoding="utf-8")
    data = {heading: [table.data() for table in each] for heading, each in tables.items()}
    (docs / "results.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    draw(tables, docs / "figures")
    print(f"{docs / 'results.md'}: {sum(len(each) for each in tables.values())} tables")


if __name__ == "__main__":
    main()
