"""Training the predictors of block scores offline, beside a frozen model (LeMo, Wang et al. 2025, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.analysis import layers
from longspan.analysis.layers import Input, Subject
from longspan.patch.install import causal_model
from longspan.patch.tokens import select
from longspan.patch.tokens.install import WIDTHS, untrained
from longspan.patch.tokens.predictor_file import PredictorFile

Pruned = Callable[[int, list[Tensor]], None]


@dataclass(frozen=True)
class Settings:
    """How predictors are trained. width: hidden units of the second layer before pruning.

    lr falls along a cosine after `warmup` steps. Every `prune_every` steps the second layer loses units that were 0 on
    more than a share of the blocks; the share starts at `prune_from` and falls by 0.05 each time. 0 prunes nothing.
    """

    steps: int = 400
    lr: float = 1e-3
    warmup: int = 20
    width: int = WIDTHS[1]
    prune_every: int = 100
    prune_from: float = 0.80

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))


class Predictor:
    """One layer's predictor while it is trained, in float32."""

    def __init__(self, number: int, columns: int, width: int) -> None:
        start = untrained(columns, number, (WIDTHS[0], width))
        self.weights = replace(start, query=_leaves(start.query), key=_leaves(start.key))
        self.optimizer = torch.optim.AdamW(self.weights.tensors, betas=(0.9, 0.95), weight_decay=0.0)
        self.scale: float | None = None  # of the labels, so that one rate serves all layers
        self.zeros = self._counters()
        self.blocks = 0

    def _counters(self) -> list[Tensor]:
        sides = self.weights.query, self.weights.key
        return [w.new_zeros(len(w), dtype=torch.int64) for side in sides for w in side[:2]]

    def learn(self, given: Input) -> float:
        """The loss of one row of tokens, after its gradient was added."""
        with torch.no_grad():
            labels = select.exact_pairs(given.call, given.rows, given.stream).float()
            z = given.call.norm(given.call.state.family.norm1, given.rows).float()
            if self.scale is None:
                self.scale = float(labels.mean().clamp(min=1e-12))
        with torch.enable_grad():
            pairs = ops.predictor_pairs(z, self.weights, given.stream.blocks, zeros=self.zeros)
            valid = _valid(given.stream.blocks, pairs)
            labels = labels / self.scale
            loss = nn.functional.smooth_l1_loss(pairs[valid], labels[valid])
            # What is used in the end is the sum over the blocks that read.
            read = valid.sum(1).clamp(min=1)
            means = nn.functional.smooth_l1_loss(pairs.sum(1) / read, labels.sum(1) / read)
            (loss + means).backward()
        self.blocks += len(given.stream.blocks.starts)
        return float(loss.detach())

    def step(self, rate: float) -> None:
        """One step of AdamW."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def prune(self, share: float) -> None:
        """Drop units of the second layers that were 0 on at least this share of the blocks, unless all would go."""
        kept = [zeros < share * self.blocks for zeros in self.zeros]
        self._cut((1, 2), kept[1])
        self._cut((4, 5), kept[3])
        self.zeros, self.blocks = self._counters(), 0

    def _cut(self, pair: tuple[int, int], kept: Tensor) -> None:
        if bool(kept.all()) or not bool(kept.any()):
            return
        numbers = kept.nonzero().flatten()
        for place, dim in ((pair[0], 0), (pair[1], 1)):
            old = self.weights.tensors[place]
            state = self.optimizer.state.pop(old, {})
            new = old.detach().index_select(dim, numbers).requires_grad_()
            cut = {name: value.index_select(dim, numbers) if value.dim() else value for name, value in state.items()}
            tensors = [new if i == place else tensor for i, tensor in enumerate(self.weights.tensors)]
            a, b, c, d, e, f = tensors
            self.weights = replace(self.weights, query=(a, b, c), key=(d, e, f))
            self.optimizer.param_groups[0]["params"] = tensors
            if cut:
                self.optimizer.state[new] = cut

    @property
    def widths(self) -> tuple[int, ...]:
        """Hidden units that are left: the query's two layers, the key's."""
        return tuple(len(zeros) for zeros in self.zeros)


def _leaves(side: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    first, second, last = side
    return first.requires_grad_(), second.requires_grad_(), (last * 0.1).requires_grad_()


def _valid(blocks: ops.TokenBlocks, pairs: Tensor) -> Tensor:
    """Bool [S,N,N]: the pairs of blocks that there are."""
    sizes = torch.tensor(blocks.cu_blocks).diff().to(pairs.device)
    there = torch.arange(pairs.shape[1], device=pairs.device) < sizes[:, None]
    return there[:, :, None] & there[:, None, :]


@dataclass(frozen=True)
class Progress:
    """After a step: its number from 1, the mean loss of the layers."""

    step: int
    loss: float


def train(subject: Subject, settings: Settings) -> Iterator[Progress | PredictorFile]:
    """Yields the loss after every step, and last the predictors. Each step is one row of the recipe's data."""
    method, base = subject.method, causal_model(subject.model)
    columns = base.config.hidden_size
    predictors = {number: Predictor(number, columns, settings.width) for number in subject.chosen}
    if not predictors:
        raise ValueError("tokens.layers names no layer of this model; there is nothing to train")
    rows, share = subject.rows(), settings.prune_from
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(subject.recipe.seed)).tolist()
    losses: list[float] = []

    def learn(given: Input) -> None:
        losses.append(predictors[given.number].learn(given))

    for step in range(settings.steps):
        losses.clear()
        with layers.watching(
            subject, subject.chosen, lambda given: losses.append(predictors[given.number].learn(given))
        ):
            layers.run(subject, rows[order[step % len(order)]])
        for predictor in predictors.values():
            predictor.step(settings.rate(step))
        if settings.prune_every and (step + 1) % settings.prune_every == 0:
            for predictor in predictors.values():
                predictor.prune(share)
            share = max(0.05, share - 0.05)
        yield Progress(step + 1, sum(losses) / len(losses))
    about: dict[str, Any] = {
        "steps": settings.steps,
        "length": subject.recipe.data.length,
        "loss": sum(losses) / len(losses),
        "hidden_units": {number: predictor.widths for number, predictor in predictors.items()},
    }
    weights = {number: predictor.weights for number, predictor in predictors.items()}
    yield PredictorFile(weights, method.block, columns, len(subject.layers), about)
