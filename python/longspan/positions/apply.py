"""Write a position method into a model's config, and into the rotary modules of a model that is built
already.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from longspan.positions.base import PositionMethod

# Layers behind a sliding window never see a distance beyond it, so their angles stay as they are.
_LOCAL_LAYERS = frozenset({"sliding_attention"})


@dataclass
class AppliedPositions:
    """What `apply_positions` changed. ``rope_parameters`` and ``max_position_embeddings`` are the new
    values.
    """

    rope_parameters: dict[str, Any] | None = None
    max_position_embeddings: int | None = None
    _config: Any = field(default=None, repr=False)
    _before: dict[str, Any] = field(default_factory=dict, repr=False)
    _rotary: list[tuple[nn.Module, dict[str, Any], dict[str, torch.Tensor | None]]] = field(
        default_factory=list, repr=False
    )

    def undo(self) -> None:
        """Restore the config and the rotary modules exactly. A second call changes nothing."""
        for name, value in self._before.items():
            setattr(self._config, name, value)
        for module, plain, buffers in self._rotary:
            module.__dict__.update(plain)
            module._buffers.update(buffers)
        self._before, self._rotary = {}, []


def apply_positions(target: Any, method: PositionMethod) -> AppliedPositions:
    """Rescale the positions of ``target``, a config of transformers or a built causal language model.

    The method is written to ``config.rope_parameters`` (so that a saved model loads in plain transformers
    with the same angles) and ``config.max_position_embeddings`` is raised; the config object is edited in
    place. The angle tables of a built model are computed anew by its own rotary classes.

    Raises ``ValueError`` when the model has no rotary positions, or a rope type that the method does not
    compose with.
    """
    model: Any = target if isinstance(target, nn.Module) else None
    config: Any = target if model is None else model.config
    rope = getattr(config, "rope_parameters", None)
    if method.rescale({"rope_type": "default"}) is None:
        return AppliedPositions()
    if not isinstance(rope, dict) or not rope:
        raise ValueError(
            f"{type(config).__name__} has no rotary positions (rope_parameters), so positions method "
            f"{method.method!r} does not apply; set positions: {{method: none}}"
        )
    new_rope = _rescaled(rope, method)
    limit = getattr(config, "max_position_embeddings", None)
    modules = _rotary_modules(model) if model is not None else []
    if model is not None and not modules:
        raise ValueError(
            f"{type(model).__name__} keeps its angles in no rotary module (inv_freq); apply the positions to "
            "the config before the model is built"
        )
    done = AppliedPositions(new_rope, _config=config, _before={"rope_parameters": rope})
    config.rope_parameters = new_rope
    if isinstance(limit, int):
        done._before["max_position_embeddings"] = limit
        config.max_position_embeddings = done.max_position_embeddings = math.ceil(limit * method.stretch())
    try:
        _validate(config, method)
        for module in modules:
            _rebuild(module, config, done)
    except BaseException:
        done.undo()
        raise
    return done


def _rescaled(rope: dict[str, Any], method: PositionMethod) -> dict[str, Any]:
    nested = {key for key, value in rope.items() if isinstance(value, dict)}
    if not nested:
        return method.rescale(rope) or rope
    new = copy.deepcopy(rope)
    for key in nested - _LOCAL_LAYERS:
        new[key] = method.rescale(rope[key]) or rope[key]
    return new


def _validate(config: Any, method: PositionMethod) -> None:
    """Some configs allow only certain rope types and say so when they are saved; find out now."""
    validate = getattr(config, "validate_rope", None)
    if validate is None:
        return
    try:
        validate()
    except ValueError as error:
        raise ValueError(
            f"{type(config).__name__} does not accept positions method {method.method!r}: {error}"
        ) from None


def _rotary_modules(model: nn.Module) -> list[nn.Module]:
    """Modules that keep inverse frequencies as buffers of their own."""
    return [
        module
        for module in model.modules()
        if any(name.endswith("inv_freq") for name, _ in module.named_buffers(recurse=False))
    ]


def _rebuild(module: nn.Module, config: Any, done: AppliedPositions) -> None:
    """Take over the tables of a fresh module of the same class: exactly what a reloaded model would have."""
    fresh: nn.Module = type(module)(config)
    plain = {name: value for name, value in fresh.__dict__.items() if name in module.__dict__ and name[0] != "_"}
    plain = {name: value for name, value in plain.items() if name not in ("training", "config")}
    done._rotary.append((module, {name: module.__dict__[name] for name in plain}, dict(module._buffers)))
    module.__dict__.update(plain)
    for name, old in module._buffers.items():
        new = fresh._buffers[name]
        if old is not None and new is not None:
            module._buffers[name] = new.to(device=old.device, dtype=old.dtype)
