"""Routers for the decoder layers of a model whose recipe wants a routed feed-forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from longspan.ffn import RoutedFeedForward
from longspan.nn.router import Router
from longspan.patch import steps
from longspan.patch.layers import parts
from longspan.patch.layers.families import LayerFamily
from longspan.patch.routed.feed_forward import ROUTER, LayerRoute, projections
from longspan.recipe import Recipe


def routes_of(recipe: Recipe, model: Any, layers: list[tuple[str, nn.Module, LayerFamily]]) -> dict[str, LayerRoute]:
    """The routed feed-forwards by the path of their layers; routers are put into those.

    Raises ValueError for a layer whose blocks cannot be told apart.
    """
    config = recipe.ffn.train
    if not isinstance(config, RoutedFeedForward):
        return {}
    counter = steps.count_steps(model.get_decoder(), recipe.trainer.accumulate)
    found = {}
    for number, (path, layer, family) in enumerate(layers):
        up, down = projections(layer, family, path)
        columns, units = down.weight.shape
        if units % config.blocks:
            allowed = [str(n) for n in range(1, 9) if units % n == 0]
            raise ValueError(
                f"{path}: {units} hidden units do not divide into ffn.train.blocks {config.blocks}; allowed: "
                f"{', '.join(allowed)}"
            )
        _check_activation(layer, family, path)
        weight = up[0].weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        router = Router(columns, config.blocks, seed=recipe.seed + number, device=weight.device, dtype=dtype)
        setattr(layer, ROUTER, router)
        found[path] = LayerRoute(config, path, counter, recipe.ffn.eval == "routed")
    return found


def _check_activation(layer: nn.Module, family: LayerFamily, path: str) -> None:
    if parts.activation_of(parts.attribute(layer, family.activation)) is None:
        name = type(parts.attribute(layer, family.activation)).__name__
        raise ValueError(f"{path}: ffn routed does not know the activation {name}; use ffn.train: dense")


def remove(model: nn.Module) -> None:
    """Take the routers away, also from a copy of the model."""
    for module in model.modules():
        if ROUTER in module._modules:
            delattr(module, ROUTER)


def describe(route: LayerRoute) -> str:
    """One line for the report."""
    config = route.config
    ramp = f", from all of them in {config.ramp_steps} steps" if config.ramp_steps else ""
    where = "training and evaluation" if route.evaluates else "training"
    return f"ffn: routed in {where}, {config.active} of {config.blocks} blocks, gate {config.gate}{ramp}"
