"""Which blocks each layer keeps of a text, and how far a predictor finds those of the exact scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.analysis import layers
from longspan.analysis.layers import Input, Subject
from longspan.patch.tokens import select
from longspan.patch.tokens.predictor_file import PredictorFile
from longspan.patch.tokens.state import LayerTokens, Signals


@dataclass
class Kept:
    """By layer: bool [N] of the blocks of one row that exact scores keep, those that a predictor keeps, and scores."""

    exact: dict[int, Tensor] = field(default_factory=dict)
    predicted: dict[int, Tensor] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)

    def recall(self, number: int) -> float:
        """Share of the blocks kept by exact scores that the predictor keeps, both keeping as many."""
        exact = self.exact[number]
        return float((self.predicted[number] & exact).sum() / exact.sum().clamp(min=1))


def keep(subject: Subject, row: Any, predictors: PredictorFile | None = None) -> Kept:
    """What the method's ratio keeps of one row of data."""
    found = Kept()

    def chosen(scores: Tensor, given: Input) -> Tensor:
        tokens = LayerTokens(subject.method, f"layer {given.number}", Signals())
        ids = select.keep(tokens, scores, given.stream).ids
        return torch.zeros(len(scores), dtype=torch.bool).index_fill(0, ids.long().cpu(), True)

    def see(given: Input) -> None:
        scores = select.column_sums(select.exact_pairs(given.call, given.rows, given.stream), given.stream)
        found.scores[given.number], found.exact[given.number] = scores, chosen(scores, given)
        if predictors is not None and given.number in predictors.layers:
            predicted = ops.predictor_score(given.normed(), predictors.layers[given.number], given.stream.blocks)
            found.predicted[given.number] = chosen(predicted, given)

    with layers.watching(subject, subject.chosen, see):
        layers.run(subject.model, row)
    return found


def mean_recall(subject: Subject, rows: Any, predictors: PredictorFile, limit: int) -> dict[int, float]:
    """By layer, over the first `limit` rows."""
    count = min(limit, len(rows))
    found = [keep(subject, rows[index], predictors) for index in range(count)]
    return {
        number: sum(one.recall(number) for one in found) / count
        for number in subject.chosen
        if number in predictors.layers
    }


def draw(kept: Kept, path: Path, title: str) -> None:
    """A heat map of layers by blocks as PNG: scores by shade, dots where the exact scores keep, rings the predictor's.

    Raises ValueError without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("the picture needs matplotlib; pip install longspan[demo]") from None
    numbers = list(kept.scores)
    shades = torch.stack([kept.scores[n].float().cpu() / kept.scores[n].float().cpu().max() for n in numbers])
    figure = Figure(figsize=(max(6.0, shades.shape[1] * 0.14), 1.5 + 0.3 * len(numbers)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shades.numpy(), aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    for place, number in enumerate(numbers):
        exact = kept.exact[number].nonzero().flatten().numpy()
        axes.plot(exact, [place] * len(exact), ".", color="black", markersize=3)
        if number in kept.predicted:
            ring = kept.predicted[number].nonzero().flatten().numpy()
            axes.plot(ring, [place] * len(ring), "o", color="tab:red", markersize=6, markerfacecolor="none")
    axes.set_yticks(range(len(numbers)), [str(number) for number in numbers])
    axes.set(title=title, xlabel="block of tokens", ylabel="decoder layer")
    figure.colorbar(image, label="score, share of the layer's highest")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
