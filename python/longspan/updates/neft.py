"""Neuron-level fine-tuning (Xu et al. 2024, arXiv 2403.11621): only the neurons that a probe run turned most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from longspan.registry import register
from longspan.updates.base import UpdateTransform

if TYPE_CHECKING:
    from torch import nn


@register("update_transform", "neft")
class NeuronFineTuning(UpdateTransform):
    """Trains the rows and columns that ``neurons`` names, a file of `longspan.updates.save_neurons`; nothing else
    changes, not a bit.
    """

    needs_all_weights: ClassVar[bool] = True

    method: Literal["neft"] = "neft"
    neurons: Annotated[str, Field(min_length=1)]

    def select(self, model: nn.Module, *, seed: int, partial: bool = False) -> None:
        """Turns `requires_grad` off for matrices without a chosen neuron."""
        from longspan.updates.neurons import load_neurons

        chosen = load_neurons(self.neurons)
        named = dict(model.named_parameters())
        unknown = sorted(set(chosen) - set(named))
        if unknown and not partial:
            raise ValueError(f"{self.neurons} chooses neurons of {unknown[0]}, which the model does not have")
        for name, parameter in named.items():
            parameter.requires_grad_(name in chosen and bool(chosen[name].mask.any()))

    def options(self, named: dict[str, nn.Parameter]) -> dict[str, Any]:
        """Frozen rows stay bit for bit."""
        return {"mode": "freeze"}

    def attach(self, optimizer: Any, named: dict[str, nn.Parameter]) -> None:
        """The masks."""
        from longspan.updates.neurons import load_neurons

        for name, mask in load_neurons(self.neurons).items():
            if name in named:
                optimizer.set_mask(named[name], mask.to(named[name]))
