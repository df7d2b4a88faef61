"""What stands in for a decoder layer's forward: it settles how this call is to run, layer.py runs it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from longspan import ops
from longspan.patch.layers import parts
from longspan.patch.layers.families import LayerFamily
from longspan.patch.layers.layer import Layer
from longspan.patch.layers.offload import Offload, checkpointed
from longspan.patch.layers.rotation import Rotations
from longspan.patch.tokens.layer import KeptLayer
from longspan.patch.tokens.state import Choice, LayerTokens

if TYPE_CHECKING:
    from longspan.patch.routed.feed_forward import LayerRoute

STATE = "_longspan_layer"


@dataclass
class LayerState:
    """What the forward of one layer is told: its family, the switches of ``lean``, the recipe's recompute."""

    family: LayerFamily
    names: tuple[str, ...]  # of the forward's arguments
    norm: bool = True
    mlp: bool = True
    rope: bool = True
    lora: bool = True
    activation: str | None = None
    recompute: str = "none"
    offload: Offload | None = None
    tokens: LayerTokens | None = None
    route: LayerRoute | None = None
    rotations: Rotations = field(default_factory=Rotations)
    judge: Callable[[Tensor, Tensor, Tensor], None] | None = None  # while patching: (given, expected, hidden)


def state_of(layer: nn.Module, family: LayerFamily, **switches: Any) -> LayerState:
    """The state of a layer whose class' forward takes what its signature says."""
    names = tuple(inspect.signature(_stock(layer)).parameters)[1:]
    activation = parts.activation_of(parts.attribute(layer, family.activation))
    return LayerState(family, tuple(name for name in names if name != "kwargs"), activation=activation, **switches)


def _stock(layer: nn.Module) -> Any:
    """The class' forward without transformers' checkpointing around it."""
    forward: Any = type(layer).forward
    return getattr(forward, "__wrapped__", forward)


def lean_forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a patched decoder layer: hidden [B,T,C] -> [B,T,C]."""
    if self.gradient_checkpointing and self.training:
        kwargs |= {name: None for name in ("past_key_values", "layer_past") if kwargs.get(name) is not None}
        if getattr(self, STATE).offload is not None:  # torch's own checkpoint would hold the layer's input
            return _run(self, None, *args, **kwargs)
        kept: Tensor = self._gradient_checkpointing_func(partial(_run, self, Choice(), **kwargs), *args)
        return kept
    return _run(self, None, *args, **kwargs)


def _run(layer: Any, chosen: Choice | None, *args: Any, **kwargs: Any) -> Tensor:
    """chosen: given by a checkpoint around the layer, in which a second run finds what the first one chose."""
    state: LayerState = getattr(layer, STATE)
    given = dict(zip(state.names, args, strict=False)) | kwargs
    if given.get("encoder_hidden_states") is not None:
        out: Tensor = _stock(layer)(layer, *args, **kwargs)
        return out
    if state.judge is not None:
        stock: Tensor = _stock(layer)(layer, *args, **kwargs)
        hidden, rest = _split(state, given)
        state.judge(Layer(layer, replace(state, route=None), "none").run(hidden, rest), stock, hidden)
        return stock
    training = layer.training and (chosen is not None or torch.is_grad_enabled())
    kind: Any = Layer
    if state.tokens is not None and training:
        if torch.compiler.is_compiling():
            raise RuntimeError("tokens.lemo needs eager mode; use tokens: none under torch.compile")
        kind = partial(KeptLayer, tokens=state.tokens, choice=Choice() if chosen is None else chosen)
    if chosen is not None or not training:
        out = kind(layer, state, "none").run(*_split(state, given))
        return out
    recompute = "layer" if layer.gradient_checkpointing else state.recompute
    if (recompute != "none" or state.offload) and torch.compiler.is_compiling():
        raise RuntimeError(
            f"memory.recompute {recompute!r} and memory.offload need eager mode; use none for both under torch.compile"
        )
    if state.offload is None:
        return _trained(kind(layer, state, recompute), *_split(state, given))
    with state.offload.shelf() as shelf:
        shelf.leave([*layer.parameters(), *layer.buffers()])
        hidden, rest = _split(state, given)
        shelf.leave(x for x in tree_leaves(rest) if isinstance(x, Tensor))
        return _trained(kind(layer, state, recompute, shelf), hidden, rest)


def _trained(run: Layer, hidden: Tensor, given: dict[str, Any]) -> Tensor:
    if run.recompute != "layer" or run.keeps_input:
        return run.run(hidden, given)
    again = replace(run, recompute="none", shelf=None)
    return checkpointed(lambda x: again.run(x, given), hidden, shelf=run.shelf)


def _split(state: LayerState, given: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    return given.pop(state.names[0]), given


def lean_norm(self: Any, x: Tensor) -> Tensor:
    """The forward of a norm that stands between layers: the last one of a model."""
    spec = parts.norm_parameters(self)
    assert spec is not None
    return ops.apply_norm(spec, x)
