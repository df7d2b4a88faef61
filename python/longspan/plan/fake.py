"""A model without memory: built from its config alone, with fake tensors for weights."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from longspan import adapters, updates
from longspan.patch.install import causal_model, patch
from longspan.recipe import Recipe

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass
class FakeModel:
    """What a run would train: `model` (in PEFT's wrapper, if it has an adapter), and its decoder layers.

    layers: how many the config has; `model` may hold fewer of them.
    """

    model: Any
    base: Any
    mode: FakeTensorMode
    layers: int

    @property
    def decoder_layers(self) -> list[nn.Module]:
        """Those that `model` holds."""
        found = _layer_list(self.base)
        return [] if found is None else list(found)


def build(recipe: Recipe, config: Any, *, patched: bool, depth: int | None = None) -> FakeModel:
    """The model of a recipe with an adapter and patched, as the trainer prepares it.

    depth: keep this many decoder layers, where all are alike, else all. Raises ValueError as `longspan.patch` does.
    """
    from transformers import AutoModelForCausalLM

    dtype = DTYPES[recipe.dtype]
    with torch.device("meta"), _quiet():
        model: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        layers = _layer_list(model)
        count = 0 if layers is None else len(layers)
        if depth is not None and layers is not None and depth < count and alike(list(layers)):
            del layers[depth:]
        model = adapters.attach(model, recipe.adapter)
        whole = recipe.adapter.method == "none"
        updates.select(model, recipe.update, seed=recipe.seed, all_weights=whole, partial=True)
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.dtype != dtype:
                parameter.data = parameter.data.to(dtype)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    materialise(model, mode)
    base = causal_model(model)
    if patched:
        patch(model, recipe)
    return FakeModel(model, base, mode, count)


def _layer_list(model: Any) -> nn.ModuleList | None:
    """The list of decoder layers: the longest one whose modules transformers can checkpoint."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    lists = [
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and any(isinstance(one, GradientCheckpointingLayer) for one in module)
    ]
    return max(lists, key=len, default=None)


def alike(layers: list[nn.Module]) -> bool:
    """Whether all layers have parameters of the same names and shapes."""

    def shapes(layer: nn.Module) -> list[Any]:
        return [type(layer), *((name, p.shape, p.dtype) for name, p in layer.named_parameters())]

    return all(shapes(layer) == shapes(layers[0]) for layer in layers)


def materialise(model: nn.Module, mode: FakeTensorMode) -> None:
    """Turn the tensors of a model on the meta device into fake ones on the CPU; tied ones stay tied."""
    made: dict[int, Tensor] = {}

    def fake(x: Tensor) -> Tensor:
        if id(x) not in made:
            with mode:
                y = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu")
            made[id(x)] = nn.Parameter(y, x.requires_grad) if isinstance(x, nn.Parameter) else y
            made[id(made[id(x)])] = made[id(x)]
        return made[id(x)]

    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module.__dict__)
        for table in tables:
            for name, value in list(table.items()):
                if isinstance(value, Tensor) and value.is_meta:
                    table[name] = fake(value)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # PEFT asks for a property that transformers renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        yield
