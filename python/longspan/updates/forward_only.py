"""What the configs of engines share that need losses only."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field

from longspan.registry import Choice, Float
from longspan.updates.base import UpdateEngine

if TYPE_CHECKING:
    from longspan.updates.zeroth_order import ShadowOptimizer

RESTORE, DISTRIBUTIONS = ("exact", "in_place"), ("gaussian", "rademacher")


class ForwardOnlyEngine(UpdateEngine):
    """``restore``: exact keeps float32 masters, in_place nothing; ``distribution``: of the noise."""

    forward_only: ClassVar[bool] = True
    # Whether its optimizer raises what it is given, a reward, which then is minus the loss.
    maximises: ClassVar[bool] = False

    weight_decay: Float = Field(default=0.0, ge=0, allow_inf_nan=False)
    restore: Annotated[str, Choice("restore", RESTORE)] = "exact"
    distribution: Annotated[str, Choice("distribution", DISTRIBUTIONS)] = "gaussian"

    def optimizer(self, groups: list[dict[str, Any]], *, seed: int, **options: Any) -> ShadowOptimizer:
        """Refuses options about gradients, of which there are none."""
        given = [name for name in ("mask", "clip") if options.get(name) is not None]
        if given:
            raise ValueError(f"update engine {self.method!r} has no gradients, so it takes no {' and no '.join(given)}")
        shared = {"restore": self.restore, "distribution": self.distribution, "seed": seed}
        return self.made(groups, weight_decay=self.weight_decay, **shared)

    @abstractmethod
    def made(self, groups: list[dict[str, Any]], **shared: Any) -> ShadowOptimizer:
        """The optimizer; shared: what all of these have."""
