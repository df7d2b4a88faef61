"""Stochastic gradient descent, with momentum if asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from longspan.registry import Float, register
from longspan.updates.base import UpdateEngine

if TYPE_CHECKING:
    from torch.optim import Optimizer


@register("update_engine", "sgd")
class Sgd(UpdateEngine):
    """The step of ``torch.optim.SGD``; ``lr`` is the peak of the schedule."""

    method: Literal["sgd"] = "sgd"
    lr: Float = Field(default=1e-2, gt=0, allow_inf_nan=False)
    momentum: Float = Field(default=0.0, ge=0, lt=1)
    weight_decay: Float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def optimizer(self, groups: list[dict[str, Any]], *, seed: int, **options: Any) -> Optimizer:
        """`longspan.updates.FusedSGD`."""
        from longspan.updates.optimizers import FusedSGD

        return FusedSGD(groups, self.lr, self.momentum, self.weight_decay, seed=seed, **options)
