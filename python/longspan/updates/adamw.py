"""AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from longspan.registry import Float, register
from longspan.updates.base import UpdateEngine

if TYPE_CHECKING:
    from torch.optim import Optimizer

Beta = Annotated[Float, Field(ge=0, lt=1)]


@register("update_engine", "adamw")
class AdamW(UpdateEngine):
    """Adam with decoupled weight decay; ``lr`` is the peak of the schedule."""

    method: Literal["adamw"] = "adamw"
    lr: Float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Float = Field(default=1e-8, gt=0, allow_inf_nan=False)
    weight_decay: Float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def optimizer(self, groups: list[dict[str, Any]], *, seed: int, **options: Any) -> Optimizer:
        """`longspan.updates.FusedAdamW`."""
        from longspan.updates.optimizers import FusedAdamW

        return FusedAdamW(groups, self.lr, self.betas, self.eps, self.weight_decay, seed=seed, **options)
