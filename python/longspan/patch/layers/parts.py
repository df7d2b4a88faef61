"""Reading transformers' and PEFT's modules: their tensors where an op may use them, or no answer where it may not.

Everything is read at the time of the call: adapters come, go, merge and are switched after a model was patched.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from longspan import ops

# Class names of activations, as transformers' ACT2FN makes them -> names of ops.glu.
_ACTIVATIONS = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
    "NewGELUActivation": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
    "ReLU": "relu",
    "ReLUSquaredActivation": "relu2",
}


def attribute(layer: nn.Module, path: str) -> Any:
    """The attribute of a dotted path; None where it is missing."""
    found: Any = layer
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def hooked(module: nn.Module) -> bool:
    """Whether calling the module does more than its class' forward."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks) or "forward" in module.__dict__


def norm_parameters(module: nn.Module) -> ops.Norm | None:
    """The row norm that a module's class computes, hooks or not; None for a class that is not known."""
    name = type(module).__name__
    if type(module) is nn.LayerNorm:
        return ops.Norm(module.weight, module.bias, "layer", module.eps)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if not name.endswith("RMSNorm") or eps is None or not isinstance(weight, Tensor):
        return None
    return ops.Norm(weight, None, "rms", eps, 1.0 if name.startswith("Gemma") else 0.0)


def activation_of(module: Any) -> str | None:
    """The name in ops.glu of an activation module, checked by its values; None for one that ops.glu does not have."""
    name = _ACTIVATIONS.get(type(module).__name__)
    if name is None or not isinstance(module, nn.Module) or hooked(module):
        return None
    x = torch.linspace(-6, 6, 101)
    return name if torch.allclose(module(x), ops.activation(x, name), atol=1e-5, rtol=1e-4) else None


def norm_of(module: nn.Module) -> ops.Norm | None:
    """The row norm that a module computes; None for one that is not known or that has hooks."""
    module = _saved(module)
    return None if hooked(module) else norm_parameters(module)


def _saved(module: nn.Module) -> Any:
    """What PEFT's modules_to_save runs instead of a module that it wraps."""
    inner = getattr(module, "modules_to_save", None)
    if not isinstance(inner, nn.ModuleDict) or hooked(module):
        return module
    active = [name for name in getattr(module, "active_adapters", ()) if name in inner]
    if getattr(module, "disable_adapters", False) or not active:
        return module.original_module
    return inner[active[0]] if len(active) == 1 else module


def linear_of(
    module: nn.Module, residual: Tensor | None = None, *, conv1d: bool = False
) -> tuple[ops.Projection, float] | None:
    """A linear layer's tensors and its adapter's dropout probability; None where the module has to be called.

    Known: ``nn.Linear``, and PEFT's LoRA around one with one active adapter, or none; with ``conv1d`` also GPT-2's
    Conv1D, whose weight is given as a transposed view.
    """
    found = _saved(module)
    if type(found) is nn.Linear or (conv1d and is_conv1d(found)):
        return None if hooked(found) else (ops.Projection(_weight(found), found.bias, residual=residual), 0.0)
    return None if why_not_lora(found, conv1d=conv1d) else _lora(found, residual)


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the linear layer of transformers that keeps its weight as [in, out]."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def _weight(module: Any) -> Tensor:
    """[out, in]."""
    weight: Tensor = module.weight
    return weight.mT if is_conv1d(module) else weight


def halves(packed: ops.Projection) -> list[ops.Projection]:
    """The two projections that one packed one holds, one after the other."""

    def half(x: Tensor | None, number: int) -> Tensor | None:
        return None if x is None else x.chunk(2)[number]

    return [
        replace(packed, weight=packed.weight.chunk(2)[i], bias=half(packed.bias, i), lora_b=half(packed.lora_b, i))
        for i in range(2)
    ]


def why_not_lora(module: nn.Module, *, conv1d: bool = False) -> str | None:
    """Why a module is not a LoRA layer whose tensors the fused op may use; None when it is one."""
    if hooked(module):
        return "it has hooks"
    try:
        from peft.tuners.lora import Linear
    except ImportError:
        return "it is not an nn.Linear"
    if type(module) is not Linear:
        return f"{type(module).__name__} is not served"
    base: Any = module.base_layer
    if type(base) is not nn.Linear and not (conv1d and is_conv1d(base)):
        return f"its base layer is {type(base).__name__}"
    if hooked(base) or any(hooked(inner) for inner in _inner(module)):
        return "it has hooks"
    if module.disable_adapters or module.merged:
        return None
    active = [name for name in module.active_adapters if name in module.lora_A]
    if len(active) > 1:
        return f"{len(active)} adapters are active at once"
    for name in active:
        if name in getattr(module, "lora_variant", {}):
            return f"its variant {type(module.lora_variant[name]).__name__} is left to PEFT"
        if type(module.lora_A[name]) is not nn.Linear or type(module.lora_B[name]) is not nn.Linear:
            return f"its adapter is {type(module.lora_A[name]).__name__}"
        if module.lora_A[name].bias is not None or module.lora_B[name].bias is not None:
            return "its adapter has a bias (lora_bias)"
        if type(module.lora_dropout[name]) not in (nn.Identity, nn.Dropout):
            return f"its dropout is {type(module.lora_dropout[name]).__name__}"
    return None


def _inner(module: Any) -> list[nn.Module]:
    return [*module.lora_A.values(), *module.lora_B.values(), *module.lora_dropout.values()]


def _lora(module: Any, residual: Tensor | None) -> tuple[ops.Projection, float]:
    base: nn.Linear = module.base_layer
    weight = _weight(base)
    active = [name for name in module.active_adapters if name in module.lora_A]
    if module.disable_adapters or module.merged or not active:
        return ops.Projection(weight, base.bias, residual=residual), 0.0
    name = active[0]
    dropout = module.lora_dropout[name]
    probability = dropout.p if isinstance(dropout, nn.Dropout) and dropout.training else 0.0
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    return ops.Projection(weight, base.bias, a, b, float(module.scaling[name]), residual), probability


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that linear layers compute in under autocast; None outside of it."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def cast(projection: ops.Projection, dtype: torch.dtype) -> ops.Projection:
    """The projection for rows of another dtype; its adapter keeps its own."""
    bias = None if projection.bias is None else projection.bias.to(dtype)
    return replace(projection, weight=projection.weight.to(dtype), bias=bias)
