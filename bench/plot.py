"""The newest record of each row as bars: share of the matrix-product rate, and speed over each baseline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.compare import newest

OURS = "#1b6ca8"
THEIRS = "#c4c4c4"


def label(row: dict[str, Any]) -> str:
    """Sizes and pattern of a row, and its route."""
    op, _, _, sizes = row["key"].split("|", 3)
    return f"{op.split('_fwd')[0]} {sizes.removeprefix('B=1,')} ({row['mode']})\n{row['impl']}"


def plot(rows: list[dict[str, Any]], path: Path) -> Path:
    """Writes a PNG. Raises ValueError when no row was timed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = newest(rows)
    if not shown:
        raise ValueError("no timed rows to plot")
    figure, (rate, speed) = pyplot.subplots(
        1, 2, figsize=(15, 1.5 + 0.5 * len(shown)), sharey=True, layout="constrained"
    )
    places = range(len(shown))
    rate.barh(places, [100 * (row["of_roofline"] or 0) for row in shown], color=OURS)
    rate.axvline(100, color="black", linewidth=0.8)
    rate.set_yticks(places, [label(row) for row in shown], fontsize=7)
    rate.invert_yaxis()
    rate.set_xlabel("arithmetic rate on useful work, % of torch.mm float32 in the same rounds")
    best = [min((b["ratio"] for b in row["baselines"].values()), default=0.0) for row in shown]
    speed.barh(places, best, color=[OURS if ratio >= 1 else THEIRS for ratio in best])
    speed.axvline(1, color="black", linewidth=0.8)
    for place, row in zip(places, shown, strict=True):
        text = ", ".join(f"{name} {b['ratio']:.2f}x" for name, b in row["baselines"].items())
        speed.annotate(text, (best[place], place), fontsize=7, va="center", xytext=(3, 0), textcoords="offset points")
    speed.set_xlabel("time of the strongest baseline / ours")
    env = shown[-1]["env"]
    figure.suptitle(f"{env['device']}, {env['threads']} threads, {env['isa']}, torch {env['torch']}", fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return path
