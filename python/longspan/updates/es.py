"""Evolution Strategies (Salimans et al. 2017; for language models Qiu et al. 2025, arXiv 2509.24372)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from longspan.registry import Float, Int, choose, register
from longspan.updates.base import UpdateEngine, no_gradients
from longspan.updates.mezo import DISTRIBUTIONS, RESTORE

if TYPE_CHECKING:
    from torch.optim import Optimizer


@register("update_engine", "es")
class EvolutionStrategiesEngine(UpdateEngine):
    """``population`` forward passes a step and no backward; the reward is minus the loss. See
    `longspan.updates.EvolutionStrategies`, which takes any reward.

    ``sigma``: how far members are from the weights; ``restore``: exact keeps float32 masters, in_place nothing.
    """

    forward_only: ClassVar[bool] = True

    method: Literal["es"] = "es"
    lr: Float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    sigma: Float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    population: Int = Field(default=30, ge=2)
    weight_decay: Float = Field(default=0.0, ge=0, allow_inf_nan=False)
    restore: str = "exact"
    distribution: str = "gaussian"

    @field_validator("restore")
    @classmethod
    def _restore(cls, name: str) -> str:
        return choose("restore", name, RESTORE)

    @field_validator("distribution")
    @classmethod
    def _distribution(cls, name: str) -> str:
        return choose("distribution", name, DISTRIBUTIONS)

    def optimizer(self, groups: list[dict[str, Any]], *, seed: int, **options: Any) -> Optimizer:
        """`longspan.updates.EvolutionStrategies`."""
        from longspan.updates.zeroth_order import EvolutionStrategies

        no_gradients(self.method, options)
        given = {"restore": self.restore, "distribution": self.distribution}
        return EvolutionStrategies(groups, self.lr, self.sigma, self.population, self.weight_decay, seed=seed, **given)
