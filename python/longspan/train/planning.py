"""The memory of a run before it starts: what `longspan.plan` is told of it, and what `memory` in its recipe means."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from longspan import plan
from longspan.patch.layers import refuse_host
from longspan.recipe import Recipe
from longspan.recipe.sections import AUTO
from longspan.recipe.sizes import gib
from longspan.train import memory
from longspan.train.model import load_config
from longspan.train.optimizer import build_optimizer

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Settled:
    """A recipe whose memory.recompute is a choice, and the predicted peak where one was asked for."""

    recipe: Recipe
    predicted_peak: int | None = None
    budget: int | None = None

    def note(self) -> dict[str, Any]:
        """For the lines of the run's log and its checkpoints; empty when nothing was predicted."""
        if self.predicted_peak is None:
            return {}
        recompute = self.recipe.memory.recompute
        return {"recompute": recompute, "predicted_peak_bytes": self.predicted_peak, "budget_bytes": self.budget}


def subject_of(
    recipe: Recipe, *, device: str | None = None, cache_dir: str | Path | None = None, patched: bool = True
) -> plan.Subject:
    """The run of a recipe as `longspan.plan` takes it; only the model's config is read.

    device: cpu or cuda, which need not be there; default what training would use.
    """
    device = device or _device()
    config = load_config(recipe.model, positions=recipe.positions, cache_dir=cache_dir)
    return plan.Subject(recipe, config, build_optimizer, plan.Machine.here(device), patched)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def settle(
    recipe: Recipe,
    *,
    before: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    patched: bool = True,
) -> Settled:
    """Choose what `memory.recompute: auto` means, and hold the run to a budget that is given.

    before: the note of the run that is resumed; its choice stays, since another one would round otherwise. Raises
    ValueError naming the smallest prediction when nothing fits, or for an offload without a GPU.
    """
    section = recipe.memory
    if patched and section.offload != "none":
        refuse_host(_device())
    if before:
        recipe = recipe.replace({"memory.recompute": before["recompute"]})
        return Settled(recipe, before["predicted_peak_bytes"], before["budget_bytes"])
    if section.recompute != AUTO and section.budget is None:
        return Settled(recipe)
    budget = section.budget_bytes or memory.available()
    subject = subject_of(recipe, cache_dir=cache_dir, patched=patched)
    if section.recompute == AUTO:
        name, prediction = plan.least_recompute(subject, budget)
        recipe = recipe.replace({"memory.recompute": name})
        logger.info("memory.recompute auto: %s, predicted peak %s of %s", name, gib(prediction.peak), gib(budget))
    else:
        prediction = plan.predict(subject)
        if prediction.peak > budget:
            raise ValueError(
                f"the predicted peak {gib(prediction.peak)} is above memory.budget {section.budget}; "
                "`longspan plan` shows what fits, memory.recompute: auto chooses"
            )
    return Settled(recipe, prediction.peak, budget)
