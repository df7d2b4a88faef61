"""Which decoder layers get a token method, and what each is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from longspan import ops
from longspan.patch.tokens.predictor_file import PredictorFile, Thresholds, read_predictor, read_thresholds
from longspan.patch.tokens.state import SIGNALS, WEIGHT, LayerTokens, Signals
from longspan.recipe import Recipe
from longspan.tokens.lemo import UNTRAINED, LeMo

WIDTHS = 128, 128  # hidden units of a predictor, both of single tokens
OUTPUTS = 64  # of its query and key


def layers_of(recipe: Recipe, model: Any, layers: list[tuple[str, nn.Module]]) -> dict[str, LayerTokens]:
    """The token methods of the recipe by the path of their layers; predictors are put into the layers.

    Raises ValueError for a predictor or thresholds of another model, and for what the recipe cannot combine.
    """
    config = recipe.tokens
    if not isinstance(config, LeMo):
        return {}
    if config.selector == "token_loss" and (not recipe.lean.loss or recipe.lean.keep_logits):
        raise ValueError(
            "tokens.selector token_loss reads the losses of longspan's own loss; set lean.loss true, keep_logits false"
        )
    chosen = config.chosen_layers(len(layers))
    thresholds: dict[int, float | None] = {}
    if config.thresholds is not None:
        found = read_thresholds(Path(config.thresholds).expanduser())
        _check_thresholds(config, found, len(layers))
        thresholds = found.layers
        chosen = tuple(layer for layer in chosen if thresholds.get(layer) is not None)
    file = _predictors(config, model, len(layers), chosen)
    signals = Signals(wants_losses=config.selector == "token_loss")
    done: dict[str, LayerTokens] = {}
    for number in chosen:
        path, layer = layers[number]
        if file is not None:
            _put(layer, file.layers[number])
        elif config.selector == "predictor":
            _put(layer, untrained(model.config.hidden_size, number))
        done[path] = LayerTokens(config, path, signals, thresholds.get(number))
    setattr(model, SIGNALS, signals)
    return done


def remove(model: nn.Module) -> None:
    """Take away what `layers_of` put into a model."""
    if SIGNALS in model.__dict__:
        delattr(model, SIGNALS)
    for module in model.modules():
        for i in range(6):
            if WEIGHT.format(i) in module._buffers:
                delattr(module, WEIGHT.format(i))


def describe(config: LeMo) -> str:
    """One line for the report."""
    share = f"thresholds of {config.thresholds}" if config.thresholds else f"{config.keep_ratio:g} of blocks"
    return (
        f"tokens: {config.method}, forward {config.forward}, {share} of {config.block} by {config.chooser}, "
        f"mlp {config.mlp}"
    )


def _check_thresholds(config: LeMo, found: Thresholds, count: int) -> None:
    if (found.block, found.count) != (config.block, count):
        raise ValueError(
            f"tokens.thresholds: {config.thresholds} is of blocks of {found.block} in {found.count} layers; the recipe "
            f"has blocks of {config.block} and the model {count} layers"
        )


def _predictors(config: LeMo, model: Any, count: int, chosen: tuple[int, ...]) -> PredictorFile | None:
    if config.predictor is None or config.predictor == UNTRAINED:
        return None
    found = read_predictor(Path(config.predictor).expanduser())
    hidden = model.config.hidden_size
    if (found.block, found.hidden, found.count) != (config.block, hidden, count):
        raise ValueError(
            f"tokens.predictor: {config.predictor} is of blocks of {found.block} in a model of {found.count} layers of "
            f"width {found.hidden}; the recipe has blocks of {config.block}, the model {count} layers of width {hidden}"
        )
    missing = [layer for layer in chosen if layer not in found.layers]
    if missing:
        raise ValueError(
            f"tokens.predictor: {config.predictor} has no predictor of layer {missing[0]}; it has those of "
            f"{sorted(found.layers)}"
        )
    return found


def untrained(columns: int, number: int, widths: tuple[int, int] = WIDTHS) -> ops.PredictorWeights:
    """Random weights for layer `number` of a model of C columns."""
    generator = torch.Generator().manual_seed(number)

    def draw(rows: int, inputs: int) -> torch.Tensor:
        return torch.randn(rows, inputs, generator=generator) * (2.0 / inputs) ** 0.5

    def side() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return draw(widths[0], columns), draw(widths[1], widths[0]), draw(OUTPUTS, widths[1])

    return ops.PredictorWeights(side(), side())


def _put(layer: nn.Module, weights: ops.PredictorWeights) -> None:
    """Buffers that move with the layer, count as its memory, and are in no checkpoint."""
    like = next(layer.parameters())
    for i, tensor in enumerate(weights.tensors):
        mine = like.detach().new_empty(tensor.shape)
        mine.copy_(tensor)
        layer.register_buffer(WEIGHT.format(i), mine, persistent=False)
