"""Give the decoder layers of one model the lean forward, and take it away again."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from longspan.patch import probe, routed
from longspan.patch.layers import parts
from longspan.patch.layers.families import FAMILIES, LayerFamily
from longspan.patch.layers.forward import STATE, lean_forward, lean_norm, state_of
from longspan.patch.layers.offload import CudaMover, Offload
from longspan.patch.layers.rotation import Rotations
from longspan.patch.tokens import install as tokens
from longspan.recipe import Recipe

SWITCHES = ("norm", "mlp", "rope", "lora")


@dataclass
class LayersPatch:
    """What runs in longspan by module path, and by recipe key what does not and why."""

    paths: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)


def install(model: Any, recipe: Recipe) -> LayersPatch:
    """Patch every decoder layer that has a family and that nobody else has changed.

    Raises ``ValueError``, with the layers as they were, when one computes something else than its class' forward.
    """
    done = LayersPatch()
    wanted = {name: getattr(recipe.lean, name) for name in SWITCHES}
    for name, on in wanted.items():
        if not on:
            done.skipped[f"lean.{name}"] = f"lean.{name} is false in the recipe: transformers' own part runs"
    memory = recipe.memory
    if not any(wanted.values()):
        for name in ("recompute", "offload"):
            if getattr(memory, name) != "none":
                done.skipped[f"memory.{name}"] = "it is done by longspan's decoder layers, and all their parts are off"
        if recipe.tokens.method != "none":
            raise ValueError(
                f"tokens.{recipe.tokens.method} is done by longspan's decoder layers, and lean.norm, mlp, rope and "
                "lora are all false in the recipe; set one of them true"
            )
        if recipe.ffn.train.method != "dense":
            raise ValueError(
                f"ffn.train {recipe.ffn.train.method} is done by longspan's decoder layers, and lean.norm, mlp, rope "
                "and lora are all false in the recipe; set one of them true"
            )
        return done
    offload = None if memory.offload == "none" else Offload(CudaMover())
    shared = {"recompute": memory.recompute, "offload": offload, "rotations": Rotations()}
    layers = _decoder_layers(model)
    served, reasons = _served(layers)
    eliminated = tokens.layers_of(recipe, model, layers)
    for what, paths in (
        (f"tokens.{recipe.tokens.method}", eliminated),
        (f"ffn.train {recipe.ffn.train.method}", reasons if recipe.ffn.train.method != "dense" else ()),
    ):
        for path in paths:
            if path in reasons:
                raise ValueError(f"{what} cannot run in {path}: {reasons[path]}")
    done.skipped |= reasons
    try:
        routes = routed.routes_of(recipe, model, served)
        for path, layer, family in served:
            kinds = {"tokens": eliminated.get(path), "route": routes.get(path)}
            setattr(layer, STATE, state_of(layer, family, **wanted, **shared, **kinds))
            layer.forward = MethodType(lean_forward, layer)
            done.paths[path] = _describe(wanted, memory.recompute, memory.offload)
            if path in eliminated:
                done.paths[path] += f"; {tokens.describe(eliminated[path].config)}"
            if path in routes:
                done.paths[path] += f"; {routed.describe(routes[path])}"
            done.skipped |= _left_out(path, layer, family, wanted)
        if wanted["norm"]:
            for path, module in _norms_between(model):
                module.forward = MethodType(lean_norm, module)
                done.paths[path] = "norm"
        _check(model)
    except BaseException:
        remove(model)
        raise
    return done


def _served(
    layers: list[tuple[str, nn.Module]],
) -> tuple[list[tuple[str, nn.Module, LayerFamily]], dict[str, str]]:
    """The layers that are ours to run, with their families; and by path why the others are not."""
    served, reasons = [], {}
    for path, layer in layers:
        family = FAMILIES.get(type(layer).__name__)
        reason = _why_not(layer, family)
        if reason is not None or family is None:
            reasons[path] = reason or ""
        else:
            served.append((path, layer, family))
    return served, reasons


def _check(model: Any) -> None:
    """Compare every patched part with its class' forward, on what it is given in a trial: errors do not add up so."""
    layers = [(path, module) for path, module in model.named_modules() if STATE in module.__dict__]
    name = type(model).__name__

    def judge(path: str, given: Tensor, expected: Tensor, hidden: Tensor | None = None) -> None:
        fits, error = probe.agree(given, expected, hidden)
        if not fits:
            raise ValueError(
                f"{name} computes something else in {path} than longspan's decoder layers (relative difference "
                f"{error:.1e} on {probe.TOKENS} tokens); set lean.norm, lean.mlp, lean.rope and lean.lora to false in "
                "the recipe to keep transformers' layers"
            )

    try:
        for path, layer in layers:
            getattr(layer, STATE).judge = partial(judge, path)
        probe.trial(model)
    finally:
        for _, layer in layers:
            getattr(layer, STATE).judge = None
    with probe.evaluating(model):
        for path, module in _norms_between(model, patched=True):
            weight: Any = module.weight
            rows = torch.arange(probe.TOKENS * weight.shape[0], device=weight.device).sin().to(weight.dtype)
            rows = rows.reshape(probe.TOKENS, -1)
            judge(path, lean_norm(module, rows), type(module).forward(module, rows))


def remove(model: nn.Module) -> None:
    """Undo `install`, also on a copy of the model."""
    tokens.remove(model)
    routed.remove(model)
    for module in model.modules():
        if STATE in module.__dict__:
            delattr(module, STATE)
        if _is_lean(module):
            del module.forward


def _decoder_layers(model: Any) -> list[tuple[str, nn.Module]]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [(name, module) for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]


def _norms_between(model: Any, patched: bool = False) -> list[tuple[str, nn.Module]]:
    """Known norms outside of decoder layers, the last one of a model: those without a patch, or those with one."""
    inside = {id(module) for _, layer in _decoder_layers(model) for module in layer.modules()}
    known = {path: module for path, module in model.named_modules() if parts.norm_parameters(module) is not None}
    return [
        (path, module)
        for path, module in known.items()
        if id(module) not in inside and (_is_lean(module) if patched else not parts.hooked(module))
    ]


def _is_lean(module: nn.Module) -> bool:
    return getattr(module.__dict__.get("forward"), "__func__", None) in (lean_forward, lean_norm)


def _why_not(layer: nn.Module, family: LayerFamily | None) -> str | None:
    name = type(layer).__name__
    if family is None:
        return f"{name} is not described in longspan.patch.layers.families; its own forward runs"
    if "forward" in layer.__dict__ or hasattr(layer, "_hf_hook"):
        return f"the forward of this {name} was replaced by another library"
    for attribute, value in family.refuse:
        found = getattr(layer, attribute, None)
        if found != value:
            return f"{name} with {attribute}={found!r} is not served"
    return None


def _describe(wanted: dict[str, bool], recompute: str, offload: str) -> str:
    on = ", ".join(name for name, value in wanted.items() if value)
    again = "" if recompute == "none" else f"; recomputes {recompute}"
    return f"decoder layer: {on}{again}" + ("" if offload == "none" else f"; saves to {offload}")


def _left_out(path: str, layer: nn.Module, family: LayerFamily, wanted: dict[str, bool]) -> dict[str, str]:
    """Modules of a patched layer that are called as they are."""
    found = {}
    for name in (*family.qkv, family.out, *family.up, family.down):
        module = parts.attribute(layer, name)
        if wanted["lora"] and parts.linear_of(module) is None:
            found[f"{path}.{name}"] = f"called as it is: {parts.why_not_lora(module)}"
    norms = [name for name in (family.norm1, family.norm2, family.post1, family.post2) if name is not None]
    for name in norms if wanted["norm"] else ():
        if parts.norm_of(parts.attribute(layer, name)) is None:
            found[f"{path}.{name}"] = f"called as it is: {type(parts.attribute(layer, name)).__name__} is not known"
    if wanted["mlp"] and parts.activation_of(parts.attribute(layer, family.activation)) is None:
        kind = type(parts.attribute(layer, family.activation)).__name__
        found[f"{path}.{family.activation}"] = f"called as it is: {kind} is not known"
    return found
