"""Gradient-Mask Tuning (Li et al. 2024, arXiv 2406.15330)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from longspan.registry import Bool, Choice, Float, register
from longspan.updates.base import UpdateTransform
from longspan.updates.layers import layer_of

if TYPE_CHECKING:
    from torch import nn

MODES, SCOPES, CLIP_ON = ("grad", "update", "freeze"), ("tensor", "layer", "global"), ("masked", "dense")


@register("update_transform", "gmt")
class GradientMaskTuning(UpdateTransform):
    """In every step only the ``keep_ratio`` largest elements of the accumulated gradient take part.

    mode: what masked elements still do: "grad" (as published: gradient 0, moments fade and move them), "update"
    (moments take the whole gradient, the step is masked), "freeze" (not a bit changes). scope: rank within each
    "tensor", "layer", or "global". exact_k: of equal ones keep the first only, else all. clip_on: ``trainer.clip``
    bounds the norm of the "masked" gradient or of the "dense" one. exempt: vectors (norms, biases), embeddings and the
    head take part whole.
    """

    method: Literal["gmt"] = "gmt"
    keep_ratio: Float = Field(default=0.2, gt=0, le=1)
    mode: Annotated[str, Choice("mode", MODES)] = "grad"
    scope: Annotated[str, Choice("scope", SCOPES)] = "tensor"
    exact_k: Bool = True
    clip_on: Annotated[str, Choice("clip_on", CLIP_ON)] = "masked"
    exempt: Bool = True

    def options(self, named: dict[str, nn.Parameter]) -> dict[str, Any]:
        """The mask."""
        from longspan.updates.masks import GradientMask

        return {"mask": GradientMask(self.keep_ratio, self.mode, self.scope, self.exact_k, self.clip_on)}

    def group_of(self, name: str, parameter: nn.Parameter) -> dict[str, Any]:
        """Keeps all of what is exempt."""
        # Matrices of layers are masked, and so are those of adapters wherever they are.
        whole = parameter.dim() < 2 or (layer_of(name) is None and "lora_" not in name)
        return {"keep_ratio": 1.0} if self.exempt and whole else {}
