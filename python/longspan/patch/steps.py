"""How many training forwards a patched model has run, counted in one place for all its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from longspan.nn.beside import Beside
from longspan.patch.side_loss import SideLosses

NAME = "longspan_steps"  # of the submodule of a decoder


class Steps(Beside):
    """Optimiser steps as far as a model can know them: `forwards` in training, by `accumulate` of them a step.

    `forwards` is the number of the one that runs or ran last, from 0; -1 before the first. A recomputation of layers
    counts nothing. losses: what the model's layers add to its loss.
    """

    def __init__(self, accumulate: int = 1) -> None:
        super().__init__()
        self.accumulate, self.forwards = accumulate, -1
        self.losses = SideLosses()

    @property
    def step(self) -> int:
        """The number of the optimiser step, from 0."""
        return max(0, self.forwards) // self.accumulate

    @property
    def first(self) -> bool:
        """Whether the forward is its step's first."""
        return self.forwards % self.accumulate == 0

    def kept(self) -> dict[str, Tensor]:
        """The count."""
        return {"forwards": torch.tensor(self.forwards)}

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put the count back."""
        self.forwards = int(tensors["forwards"])

    def extra_repr(self) -> str:
        """The count, and what it is divided by."""
        return f"forwards={self.forwards}, accumulate={self.accumulate}"


def count_steps(decoder: nn.Module, accumulate: int) -> Steps:
    """The counter of a decoder, put there now or before."""
    found = getattr(decoder, NAME, None)
    if isinstance(found, Steps):
        return found
    steps = Steps(accumulate)
    setattr(decoder, NAME, steps)
    decoder.register_forward_pre_hook(_count)
    return steps


def steps_of(decoder: nn.Module) -> Steps | None:
    """The counter of a decoder, None where nothing needs one."""
    found = getattr(decoder, NAME, None)
    return found if isinstance(found, Steps) else None


def remove(model: Any) -> None:
    """Take the counter away, also from a copy of the model."""
    decoder = model.get_decoder()
    if NAME in decoder._modules:
        delattr(decoder, NAME)
    for key in [key for key, hook in decoder._forward_pre_hooks.items() if hook is _count]:
        del decoder._forward_pre_hooks[key]


def _count(decoder: nn.Module, _: Any) -> None:
    steps = steps_of(decoder)
    if steps is None:
        return
    steps.losses.begin()
    if decoder.training and torch.is_grad_enabled():
        steps.forwards += 1
        if steps.first:
            steps.losses.figures.clear()  # a line of a log has its own step's, also behind a resume
