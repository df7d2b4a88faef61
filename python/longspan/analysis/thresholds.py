"""The search of per-layer thresholds: one sweep of finite differences (LeMo, Wang et al. 2025, section 3).

The paper gives neither the measure nor the cost of keeping; here a layer's threshold is a share of its highest score,
and what is maximised is -(loss with elimination) - cost * (share of blocks kept), since the loss alone keeps all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from longspan import data, ops
from longspan.analysis.layers import Subject
from longspan.patch.install import causal_model, patch, unpatch
from longspan.patch.layers.forward import STATE
from longspan.patch.tokens.predictor_file import Thresholds


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
    """Training-time forwards with elimination, without a graph: no parameter requires a gradient.

    tokens: the layers' methods. kept, means: by layer and row, the share of blocks that the last forwards kept, and
    their mean score as a share of the highest.
    """

    def __init__(self, subject: Subject, settings: Settings) -> None:
        self.model, self.settings = subject.model, settings
        rows = subject.rows(held_out=True)
        self.batches = [data.collate([rows[index]]) for index in range(min(settings.rows, len(rows)))]
        states = [getattr(layer, STATE) for layer in subject.layers]
        self.tokens = {number: state.tokens for number, state in enumerate(states) if state.tokens is not None}
        self.kept: dict[int, list[float]] = {}
        self.means: dict[int, list[float]] = {}
        for number, tokens in self.tokens.items():
            tokens.watch = partial(self._see, number)

    def _see(self, number: int, scores: Tensor, kept: ops.KeptBlocks) -> None:
        self.kept[number].append(len(kept.ids) / len(scores))
        self.means[number].append(float(scores.mean() / scores.max()))

    def evaluate(self) -> float:
        """The objective."""
        self.kept = {number: [] for number in self.tokens}
        self.means = {number: [] for number in self.tokens}
        with torch.enable_grad():
            losses = [float(self.model(**batch, use_cache=False).loss) for batch in self.batches]
        shares = [_mean(values) for values in self.kept.values()]
        return -_mean(losses) - self.settings.cost * _mean(shares)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


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
        tokens = running.tokens
        for number, one in tokens.items():
            one.threshold = _mean(running.means[number])
        kept: dict[int, float] = {}
        for number, one in tokens.items():
            before = one.threshold
            assert before is not None
            width = max(settings.step * before, 1e-6)
            sides = []
            for sign in (1, -1):
                one.threshold = before + sign * width
                sides.append(running.evaluate())
            one.threshold = before + settings.rate * (sides[0] - sides[1]) / (2 * width)
            kept[number] = _clamped(running, number, settings.least)
            yield Found(number, before, float(one.threshold), kept[number], (sides[0], sides[1]))
        found = {number: one.threshold for number, one in tokens.items()}
        about = {"cost": settings.cost, "rows": settings.rows, "least": settings.least}
        yield Thresholds(dict(found), kept, method.block, len(subject.layers), about)
    finally:
        subject.model.eval()


def _clamped(running: _Search, number: int, least: float) -> float:
    """Lower the threshold until the share of blocks that is kept reaches `least`; the share."""
    tokens = running.tokens[number]
    assert tokens.threshold is not None
    tokens.threshold = min(max(tokens.threshold, 0.0), 1.0)
    while True:
        running.evaluate()
        share = _mean(running.kept[number])
        if share >= least or tokens.threshold < 1e-3:
            return share
        tokens.threshold *= 0.8
