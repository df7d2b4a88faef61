"""Training the predictors of block scores offline, beside a frozen model (LeMo, Wang et al. 2025, section 3)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
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


@dataclass(frozen=True)
class Settings:
    """How predictors are trained. width: hidden units of the second layer before pruning.

    Each step takes a new row of tokens and learns from it and from `replays` rows of before, drawn from the last
    `memory` ones: the frozen model's forward costs most, and what a layer was given is M C numbers of float32 a row.
    lr falls along a cosine after `warmup` steps. Every `prune_every` steps the second layer loses units that were 0 on
    more than a share of the blocks; the share starts at `prune_from` and falls by 0.05 each time. 0 prunes nothing.
    """

    steps: int = 450
    lr: float = 1e-3
    warmup: int = 20
    width: int = WIDTHS[1]
    replays: int = 3
    memory: int = 32
    prune_every: int = 100
    prune_from: float = 0.80

    def rate(self, step: int) -> float:
        """The learning rate of step 0, 1, ..."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.lr * 0.5 * (1 + float(torch.cos(torch.tensor(done * torch.pi))))


@dataclass(frozen=True)
class Lesson:
    """What is learnt from one row of tokens: a layer's normed input [M,C] and the exact scores of its pairs [S,N,N]."""

    normed: Tensor
    labels: Tensor
    blocks: ops.TokenBlocks

    @classmethod
    def of(cls, given: Input) -> Lesson:
        """The lesson in a layer's input, in float32."""
        with torch.no_grad():
            labels = select.exact_pairs(given.call, given.rows, given.stream).float()
            return cls(given.normed(), labels, given.stream.blocks)


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
        return [side[1].new_zeros(len(side[1]), dtype=torch.int64) for side in (self.weights.query, self.weights.key)]

    def learn(self, lesson: Lesson, rate: float) -> float:
        """One step of AdamW; the SmoothL1 loss of the pairs."""
        if self.scale is None:
            self.scale = float(lesson.labels.mean().clamp(min=1e-12))
        labels = lesson.labels / self.scale
        with torch.enable_grad():
            pairs = ops.predictor_pairs(lesson.normed, self.weights, lesson.blocks, zeros=self.zeros)
            valid = _valid(lesson.blocks, pairs)
            loss = nn.functional.smooth_l1_loss(pairs[valid], labels[valid])
            # What chooses is the order of the sums over the blocks that read, whatever their level and spread.
            orders = nn.functional.smooth_l1_loss(_standard(pairs.sum(1), valid), _standard(labels.sum(1), valid))
            (loss + orders).backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.blocks += len(lesson.blocks.starts)
        return float(loss.detach())

    def prune(self, share: float) -> None:
        """Drop units of the second layers that were 0 on at least this share of the blocks, unless all would go."""
        for place, zeros in zip((1, 4), self.zeros, strict=True):
            self._cut((place, place + 1), zeros < share * self.blocks)
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
        """Hidden units that are left in the second layers, the query's and the key's."""
        return tuple(len(zeros) for zeros in self.zeros)


def _leaves(side: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    first, second, last = side
    return first.requires_grad_(), second.requires_grad_(), (last * 0.1).requires_grad_()


def _valid(blocks: ops.TokenBlocks, pairs: Tensor) -> Tensor:
    """Bool [S,N,N]: the pairs of blocks that there are."""
    sizes = torch.tensor(blocks.cu_blocks).diff().to(pairs.device)
    there = torch.arange(pairs.shape[1], device=pairs.device) < sizes[:, None]
    return there[:, :, None] & there[:, None, :]


def _standard(sums: Tensor, valid: Tensor) -> Tensor:
    """Sums [S,N] less their mean over a segment's blocks, by their standard deviation; 0 where there is no block."""
    there = valid.any(1)
    count = there.sum(1, keepdim=True).clamp(min=1)
    apart = (sums - (sums * there).sum(1, keepdim=True) / count) * there
    spread = (apart.square().sum(1, keepdim=True) / count + 1e-12).sqrt()
    return apart / spread


@dataclass(frozen=True)
class Progress:
    """After a step: its number from 1, the mean loss of the layers."""

    step: int
    loss: float


def train(subject: Subject, settings: Settings) -> Iterator[Progress | PredictorFile]:
    """Yields the loss after every step, and last the predictors. Each step is one new row of the recipe's data."""
    method, base = subject.method, causal_model(subject.model)
    columns = base.config.hidden_size
    predictors = {number: Predictor(number, columns, settings.width) for number in subject.chosen}
    if not predictors:
        raise ValueError("tokens.layers names no layer of this model; there is nothing to train")
    rows, share = subject.rows(), settings.prune_from
    generator = torch.Generator().manual_seed(subject.recipe.seed)
    order = torch.randperm(len(rows), generator=generator).tolist()
    remembered: deque[dict[int, Lesson]] = deque(maxlen=settings.memory)
    losses: list[float] = []

    def learn(given: Input) -> None:
        remembered[-1][given.number] = lesson = Lesson.of(given)
        losses.append(predictors[given.number].learn(lesson, settings.rate(step)))

    for step in range(settings.steps):
        losses.clear()
        remembered.append({})
        with layers.watching(subject, subject.chosen, learn):
            layers.run(subject.model, rows[order[step % len(order)]])
        for again in torch.randint(len(remembered), (settings.replays,), generator=generator).tolist():
            for number, lesson in remembered[again].items():
                predictors[number].learn(lesson, settings.rate(step))
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
