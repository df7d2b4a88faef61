"""Evolution Strategies (Salimans et al. 2017; for language models Qiu et al. 2025, arXiv 2509.24372)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from longspan.registry import Float, Int, register
from longspan.updates.forward_only import ForwardOnlyEngine

if TYPE_CHECKING:
    from longspan.updates.zeroth_order import EvolutionStrategies


@register("update_engine", "es")
class EvolutionStrategiesEngine(ForwardOnlyEngine):
    """``population`` forward passes a step and no backward; the reward is minus the loss. See
    `longspan.updates.EvolutionStrategies`, which takes any reward.

    ``sigma``: how far members are from the weights; ``restore``: exact keeps float32 masters, in_place nothing.
    """

    maximises: ClassVar[bool] = True

    method: Literal["es"] = "es"
    lr: Float = Field(default=5e-4, gt=0, allow_inf_nan=False)
    sigma: Float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    population: Int = Field(default=30, ge=2)

    def made(self, groups: list[dict[str, Any]], **shared: Any) -> EvolutionStrategies:
        """`longspan.updates.EvolutionStrategies`."""
        from longspan.updates.zeroth_order import EvolutionStrategies

        return EvolutionStrategies(groups, self.lr, self.sigma, self.population, **shared)
