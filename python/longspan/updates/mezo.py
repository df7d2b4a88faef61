"""MeZO (Malladi et al. 2023, arXiv 2305.17333): forward passes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, field_validator

from longspan.registry import Float, Int, choose, register
from longspan.updates.base import UpdateEngine, no_gradients

if TYPE_CHECKING:
    from torch.optim import Optimizer

RESTORE, DISTRIBUTIONS = ("exact", "in_place"), ("gaussian", "rademacher")


@register("update_engine", "mezo")
class MeZOEngine(UpdateEngine):
    """Two forward passes a step and no backward; see `longspan.updates.MeZO`.

    ``eps``: how far the two losses are measured; ``samples``: directions a step; ``restore``: exact keeps float32
    masters, in_place nothing.
    """

    forward_only: ClassVar[bool] = True

    method: Literal["mezo"] = "mezo"
    lr: Float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    eps: Float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: Float = Field(default=0.0, ge=0, allow_inf_nan=False)
    samples: Int = Field(default=1, ge=1)
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
        """`longspan.updates.MeZO`."""
        from longspan.updates.zeroth_order import MeZO

        no_gradients(self.method, options)
        given = {"restore": self.restore, "distribution": self.distribution}
        return MeZO(groups, self.lr, self.eps, self.weight_decay, samples=self.samples, seed=seed, **given)
