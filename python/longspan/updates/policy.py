"""From a recipe's update section to what trains and an optimizer over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from longspan.updates.clipping import GradientClip
from longspan.updates.groups import check_layers, reinitialise, settings_of
from longspan.updates.layers import count_layers


def select(model: nn.Module, section: Any, *, seed: int, all_weights: bool, partial: bool = False) -> None:
    """Freezes and re-initialises what the groups and transforms of an update section say.

    all_weights: whether the run trains the model itself, not an adapter. partial: the model lacks some of its layers,
    as that of a plan. Raises ValueError for what does not fit.
    """
    for transform in section.transforms:
        if transform.needs_all_weights and not all_weights:
            raise ValueError(
                f"update transform {transform.method!r} chooses among the model's own weights; it needs "
                "adapter: {method: none}"
            )
        transform.select(model, seed=seed, partial=partial)
    if not section.groups:
        return
    named = dict(model.named_parameters())
    if not partial:
        check_layers(section.groups, list(named))
    count, anew = count_layers(named), set()
    for name, parameter in named.items():
        settings = settings_of(section.groups, name, count)
        if settings.get("freeze"):
            parameter.requires_grad_(False)
        if settings.get("reinit"):
            anew.add(name)
    if anew:
        reinitialise(model, anew, seed=seed)


def build(
    section: Any,
    named: Mapping[str, nn.Parameter],
    *,
    clip: float = 0.0,
    seed: int = 0,
    undecayed: Iterable[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """The optimizer of an update section over named parameters that train.

    clip: bound of the gradient norm inside the step, 0 without; a transform may set another. undecayed: parameters
    without weight decay. Raises ValueError for what does not combine.
    """
    engine = section.engine
    alone = {id(parameter) for parameter in undecayed}
    options: dict[str, Any] = {}
    if clip and not engine.forward_only:
        options["clip"] = GradientClip(clip)
    trained = {name: p for name, p in named.items() if p.requires_grad}
    for transform in section.transforms:
        options |= transform.options(trained)
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    count = count_layers(named)
    for name, parameter in trained.items():
        settings = settings_of(section.groups, name, count)
        own: dict[str, Any] = {}
        for transform in section.transforms:
            own |= transform.group_of(name, parameter)
        own |= {key: settings[key] for key in ("weight_decay", "keep_ratio") if key in settings}
        if settings["lr_scale"] != 1:
            own["lr"] = engine.lr * settings["lr_scale"]
        if id(parameter) in alone:
            own["weight_decay"] = 0.0
        if "mask" not in options:
            own.pop("keep_ratio", None)
        group = groups.setdefault(tuple(sorted(own.items())), {"params": [], **own})
        group["params"].append((name, parameter))
    optimizer: torch.optim.Optimizer = engine.optimizer(list(groups.values()), seed=seed, **options)
    for transform in section.transforms:
        transform.attach(optimizer, trained)
    return optimizer
