"""Component-wise gradient norm clipping (Yang and Ma 2022, arXiv 2210.10325)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from longspan.registry import Bool, Choice, Float, register
from longspan.updates.base import UpdateTransform

if TYPE_CHECKING:
    from torch import nn


@register("update_transform", "component_clip")
class ComponentClip(UpdateTransform):
    """Bounds the gradient norm of each component by itself, in place of ``trainer.clip``.

    component: each "tensor" (as published), "module" (weight and bias) or "layer". by_size: a component of n elements
    is bounded by max_norm sqrt(n).
    """

    method: Literal["component_clip"] = "component_clip"
    max_norm: Float = Field(gt=0)
    component: Annotated[str, Choice("component", ("tensor", "module", "layer"))] = "tensor"
    by_size: Bool = False

    def options(self, named: dict[str, nn.Parameter]) -> dict[str, Any]:
        """The clip."""
        from longspan.updates.clipping import GradientClip

        return {"clip": GradientClip(self.max_norm, self.component, self.by_size)}
