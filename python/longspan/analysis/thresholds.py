"""The search of per-layer thresholds: one sweep of finite differences (LeMo, Wang et al. 2025, section 3).

The paper gives neither the measure nor the cost of keeping; here a layer's threshold is a share of its highest score,
and what is maximised is -(loss with elimination) - cost * (share of blocks kept), since the loss alone keeps all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from longspan import data
from longspan.analysis.layers import Subject
from longspan.patch.install import causal_model, patch, unpatch
from longspan.patch.layers.forward import STATE
from longspan.patch.tokens import select
from longspan.patch.tokens.predictor_file import Thresholds
from longspan.patch.tokens.state import LayerTokens


@dataclass(frozen=True)
class Settings:
    """cost: nats that keeping all blocks of all layers is worth to save. rate: of a step along the difference.

    least: share of a layer's blocks that is kept at least; step: width of a difference, as a share of the threshold.
    """

    rows: int = 4
    cost: float = 1.0
    rate: float = 0.1
    least: float = 0.2
    step: float = 0.05


@dataclass(frozen=True)
class Found:
    """One layer's search: its threshold before and after, the share of blocks kept, the objective at both sides."""

    number: int
    before: float
    after: float
    kept: float
    objective: tuple[float, float]


class _Search:
    """Training-time forwards with elimination, without a graph: no parameter requires a gradient."""

    def __init__(self, subject: Subject, settings: Settings) -> None:
        self.subject, self.settings = subject, settings
        rows = subject.rows(held_out=True)
        self.batches = [data.collate([rows[index]]) for index in range(min(settings.rows, len(rows)))]
        self.scores: dict[str, list[float]] = {}
        self.kept: dict[str, list[float]] = {}

    def layers(self) -> dict[int, LayerTokens]:
        found = {}
        for number, layer in enumerate(self.subject.layers):
            tokens = getattr(layer, STATE).tokens
            if tokens is not None:
                found[number] = tokens
        return found

    def evaluate(self) -> tuple[float, dict[str, float]]:
        """The objective, and the share of blocks that each layer kept."""
        self.kept.clear()
        keep = select.keep

        def watched(tokens: LayerTokens, scores: Any, stream: Any, ratio: float | None = None) -> Any:
            chosen = keep(tokens, scores, stream, ratio)
            self.kept.setdefault(tokens.path, []).append(len(chosen.ids) / len(scores))
            self.scores.setdefault(tokens.path, []).append(float(scores.mean() / scores.max()))
            return chosen

        model = self.subject.model
        select.keep = watched
        try:
            with torch.enable_grad():
                losses = [float(model(**batch, use_cache=False).loss) for batch in self.batches]
        finally:
            select.keep = keep
        shares = {path: sum(values) / len(values) for path, values in self.kept.items()}
        mean = sum(shares.values()) / max(1, len(shares))
        return -sum(losses) / len(losses) - self.settings.cost * mean, shares


def search(subject: Subject, settings: Settings) -> Iterator[Found | Thresholds]:
    """Yields each layer's threshold as it is found, and last all of them. Starts at the layers' mean scores."""
    base = causal_model(subject.model)
    method = subject.method
    config = method.model_dump() | {"forward": "eliminate", "mlp": "dense", "layers": list(subject.chosen)}
    if config["selector"] not in ("scores", "predictor"):
        config |= {"selector": "scores", "predictor": None}
    unpatch(base)
    patch(base, subject.recipe.replace({"tokens": config | {"thresholds": None}, "adapter": {"method": "none"}}))
    subject.model.train()
    try:
        running = _Search(subject, settings)
        running.evaluate()
        tokens = running.layers()
        for one in tokens.values():
            values = running.scores[one.path]
            one.threshold = sum(values) / len(values)
        kept: dict[int, float] = {}
        for number, one in tokens.items():
            before = one.threshold
            assert before is not None
            width = max(settings.step * before, 1e-6)
            sides = []
            for sign in (1, -1):
                one.threshold = before + sign * width
                sides.append(running.evaluate()[0])
            one.threshold = before + settings.rate * (sides[0] - sides[1]) / (2 * width)
            kept[number] = _clamped(running, one, settings.least)
            yield Found(number, before, float(one.threshold), kept[number], (sides[0], sides[1]))
        found = {number: one.threshold for number, one in tokens.items()}
        about = {"cost": settings.cost, "rows": settings.rows, "least": settings.least}
        yield Thresholds(dict(found), kept, method.block, len(subject.layers), about)
    finally:
        subject.model.eval()


def _clamped(running: _Search, tokens: LayerTokens, least: float) -> float:
    """Lower the threshold until the share of blocks that is kept reaches `least`; the share."""
    assert tokens.threshold is not None
    tokens.threshold = min(max(tokens.threshold, 0.0), 1.0)
    while True:
        share = running.evaluate()[1][tokens.path]
        if share >= least or tokens.threshold < 1e-3:
            return share
        tokens.threshold *= 0.8
