"""Axis *updates*: which parameters change, and how. Importing this package loads the configs only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longspan.registry import reserve
from longspan.updates.adamw import AdamW
from longspan.updates.base import UpdateEngine, UpdateHook, UpdateTransform
from longspan.updates.component_clip import ComponentClip
from longspan.updates.ema import MovingAverage
from longspan.updates.es import EvolutionStrategiesEngine
from longspan.updates.gmt import GradientMaskTuning
from longspan.updates.groups import ParameterGroup
from longspan.updates.hft import HalfFineTuning, half_of
from longspan.updates.mezo import MeZOEngine
from longspan.updates.neft import NeuronFineTuning
from longspan.updates.sgd import Sgd

if TYPE_CHECKING:
    from longspan.updates.clipping import GradientClip
    from longspan.updates.fused import FusedOptimizer
    from longspan.updates.masks import GradientMask
    from longspan.updates.neurons import choose_neurons, load_neurons, neuron_scores, save_neurons
    from longspan.updates.optimizers import FusedAdamW, FusedSGD, GradientMaskAdamW, GradientMaskSGD
    from longspan.updates.policy import build, select
    from longspan.updates.slow_weights import SlowWeights
    from longspan.updates.zeroth_order import EvolutionStrategies, MeZO

reserve("update_hook", "merge")

__all__ = [
    "AdamW",
    "ComponentClip",
    "EvolutionStrategies",
    "EvolutionStrategiesEngine",
    "FusedAdamW",
    "FusedOptimizer",
    "FusedSGD",
    "GradientClip",
    "GradientMask",
    "GradientMaskAdamW",
    "GradientMaskSGD",
    "GradientMaskTuning",
    "HalfFineTuning",
    "MeZO",
    "MeZOEngine",
    "MovingAverage",
    "NeuronFineTuning",
    "ParameterGroup",
    "Sgd",
    "SlowWeights",
    "UpdateEngine",
    "UpdateHook",
    "UpdateTransform",
    "build",
    "choose_neurons",
    "half_of",
    "load_neurons",
    "neuron_scores",
    "save_neurons",
    "select",
]

# Name -> the module that defines it and needs torch.
_LAZY = {
    "EvolutionStrategies": "zeroth_order",
    "FusedAdamW": "optimizers",
    "FusedOptimizer": "fused",
    "FusedSGD": "optimizers",
    "GradientClip": "clipping",
    "GradientMask": "masks",
    "GradientMaskAdamW": "optimizers",
    "GradientMaskSGD": "optimizers",
    "MeZO": "zeroth_order",
    "SlowWeights": "slow_weights",
    "build": "policy",
    "choose_neurons": "neurons",
    "load_neurons": "neurons",
    "neuron_scores": "neurons",
    "save_neurons": "neurons",
    "select": "policy",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"longspan.updates.{_LAZY[name]}"), name)
