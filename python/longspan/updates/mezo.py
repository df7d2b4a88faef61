"""MeZO (Malladi et al. 2023, arXiv 2305.17333): forward passes only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from longspan.registry import Float, Int, register
from longspan.updates.forward_only import ForwardOnlyEngine

if TYPE_CHECKING:
    from longspan.updates.zeroth_order import MeZO


@register("update_engine", "mezo")
class MeZOEngine(ForwardOnlyEngine):
    """Two forward passes a step and no backward; see `longspan.updates.MeZO`.

    ``eps``: how far the two losses are measured; ``samples``: directions a step; ``restore``: exact keeps float32
    masters, in_place nothing.
    """

    method: Literal["mezo"] = "mezo"
    lr: Float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    eps: Float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    samples: Int = Field(default=1, ge=1)

    def made(self, groups: list[dict[str, Any]], **shared: Any) -> MeZO:
        """`longspan.updates.MeZO`."""
        from longspan.updates.zeroth_order import MeZO

        return MeZO(groups, self.lr, self.eps, samples=self.samples, **shared)
