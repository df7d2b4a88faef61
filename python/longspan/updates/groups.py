"""Parameter groups of a recipe: who learns how fast, who stays, who begins anew."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator, model_validator

from longspan.registry import Bool, Config, Float
from longspan.updates.layers import count_layers, layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn


class ParameterGroup(Config):
    """What holds for some parameters; of several groups that match one, later ones win, key by key.

    names: globs over parameter names, all by default. layers: numbers of decoder layers, negative from the end; null
    is everything, also outside of layers. lr_scale: times the engine's lr. layer_decay: times layer_decay^d, d layers
    below the last (embeddings below the first; Howard and Ruder 2018). weight_decay, keep_ratio: instead of the
    engine's and the mask's. freeze: stays bit for bit. reinit: begins from new random weights.
    """

    names: tuple[str, ...] = ("*",)
    layers: tuple[int, ...] | None = None
    lr_scale: Float = Field(default=1.0, ge=0, allow_inf_nan=False)
    layer_decay: Float | None = Field(default=None, gt=0, le=1)
    weight_decay: Float | None = Field(default=None, ge=0, allow_inf_nan=False)
    keep_ratio: Float | None = Field(default=None, gt=0, le=1)
    freeze: Bool = False
    reinit: Bool = False

    @field_validator("names", mode="before")
    @classmethod
    def _names(cls, given: Any) -> Any:
        return (given,) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _does_something(self) -> ParameterGroup:
        if self.freeze and (self.reinit or self.keep_ratio is not None or self.weight_decay is not None):
            raise ValueError("what is frozen is not stepped: freeze stands alone")
        return self

    def matches(self, name: str, layer: int | None, count: int) -> bool:
        """Whether a parameter of a layer (of `count`) belongs to it."""
        if self.layers is not None and (layer is None or layer not in {each % count for each in self.layers}):
            return False
        return any(fnmatchcase(name, pattern) for pattern in self.names)


def check_layers(groups: Iterable[ParameterGroup], names: list[str]) -> None:
    """Raises ValueError for a layer that is not there, and for a group that matches nothing."""
    count = count_layers(names)
    for number, group in enumerate(groups):
        for layer in group.layers or ():
            if not -count <= layer < count:
                raise ValueError(f"update.groups[{number}] names layer {layer}; the model has {count} layers")
        if not any(group.matches(name, layer_of(name), count) for name in names):
            raise ValueError(
                f"update.groups[{number}] ({', '.join(group.names)}) matches no parameter; there are {names[0]}, ..."
            )


def settings_of(groups: Iterable[ParameterGroup], name: str, count: int) -> dict[str, Any]:
    """Of one parameter: lr_scale, and what is given of weight_decay, keep_ratio, freeze and reinit."""
    layer, found = layer_of(name), {"lr_scale": 1.0}
    for group in groups:
        if not group.matches(name, layer, count):
            continue
        scale = group.lr_scale
        if group.layer_decay is not None:
            scale *= group.layer_decay ** _depth(name, layer, count)
        found["lr_scale"] *= scale
        for key in ("weight_decay", "keep_ratio"):
            if getattr(group, key) is not None:
                found[key] = getattr(group, key)
        for key in ("freeze", "reinit"):
            if getattr(group, key):
                found[key] = True
    return found


def _depth(name: str, layer: int | None, count: int) -> int:
    """Layers between a parameter and the output."""
    if layer is not None:
        return count - 1 - layer
    return count if "embed" in name or "wte" in name else 0


def reinitialise(model: nn.Module, names: set[str], *, seed: int) -> None:
    """New weights for these parameters: normal with the config's initializer_range, norms 1, biases 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    deviation = float(getattr(getattr(model, "config", None), "initializer_range", 0.02))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name not in names:
                continue
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            else:
                fresh = torch.empty(parameter.shape).normal_(0, deviation, generator=generator)
                parameter.copy_(fresh)
