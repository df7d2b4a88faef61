"""Add an adapter to a model through PEFT and choose what trains beside it."""

from __future__ import annotations

from typing import Any

from torch import nn

from longspan.adapters.base import AdapterMethod
from longspan.adapters.lora import LoraAdapter

# Names of the parameters that train in full, as a plain attribute of the transformers model.
TRAINED = "_longspan_trained"


def attach(model: nn.Module, config: AdapterMethod) -> Any:
    """Add the adapter that ``config`` describes; returns the ``PeftModel``, or the model itself for ``none``.

    With ``also_train`` the model's own embedding and norm parameters train in place, so tied embeddings and
    heads stay one tensor that gets the gradient of both, and no second copy of an embedding exists (PEFT's
    ``modules_to_save`` would make one). PEFT's ``disable_adapter`` therefore does not take their changes
    back.

    Raises ``ValueError`` for a model that has an adapter already, and for target names that match no module.
    """
    if config.method == "none":
        model.requires_grad_(True)
        return model
    if not isinstance(config, LoraAdapter):
        raise ValueError(f"adapter method {config.method!r} cannot be attached; available: lora, none")
    from peft import LoraConfig, PeftModel, get_peft_model

    if isinstance(model, PeftModel) or hasattr(model, "peft_config"):
        raise ValueError("the model has a PEFT adapter already; merge it or load a fresh model before attaching one")
    trained = trained_names(model, config)
    targets = _check_targets(model, config, trained)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=_whole(config.alpha),
        lora_dropout=config.dropout,
        target_modules=targets,
        fan_in_fan_out=_transposed(model, targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(model, lora)
    mark_trained(model, trained)
    return wrapped


def trained_names(model: nn.Module, config: LoraAdapter) -> tuple[str, ...]:
    """Names of the model's own parameters that train; a tied parameter is named once.

    Raises ``ValueError`` when a part of ``also_train`` has no parameters in this model.
    """
    wanted: set[int] = set()
    for part in config.also_train:
        found = _embeddings(model) if part == "embeddings" else _norms(model)
        if not found:
            raise ValueError(f"adapter.also_train: {type(model).__name__} has no {part}")
        wanted |= {id(parameter) for parameter in found}
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in wanted)


def mark_trained(model: nn.Module, names: tuple[str, ...]) -> None:
    """Let the named parameters train and remember them for saving."""
    parameters = dict(model.named_parameters())
    for name in names:
        parameters[name].requires_grad_(True)
    setattr(model, TRAINED, names)


def _embeddings(model: Any) -> list[nn.Parameter]:
    return list(model.get_input_embeddings().parameters())


def _norms(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of LayerNorm, RMSNorm and their many namesakes."""
    return [
        parameter
        for module in model.modules()
        if "norm" in type(module).__name__.lower() and not any(module.children())
        for parameter in module.parameters(recurse=False)
    ]


def _check_targets(model: nn.Module, config: LoraAdapter, trained: tuple[str, ...]) -> list[str] | str:
    if config.targets == ("all-linear",):
        return "all-linear"
    names = [name for name, _ in model.named_modules()]
    for target in config.targets:
        hits = [name for name in names if name == target or name.endswith(f".{target}")]
        if not hits:
            raise ValueError(
                f"adapter.targets: {type(model).__name__} has no module {target!r}; "
                f"its linear modules are: {', '.join(_linear_names(model))}"
            )
        both = [name for name in trained if name.rpartition(".")[0] in hits]
        if both:
            raise ValueError(f"adapter: {both[0]} cannot both train in full (also_train) and be a target ({target!r})")
    return list(config.targets)


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _linear_names(model: nn.Module) -> list[str]:
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or _is_conv1d(module)
    }
    return sorted(found)


def _transposed(model: nn.Module, targets: list[str] | str) -> bool:
    """GPT-2's Conv1D keeps its weight as [in, out]."""
    ends = None if isinstance(targets, str) else tuple(targets)
    return any(
        _is_conv1d(module) and (ends is None or name.rpartition(".")[2] in ends)
        for name, module in model.named_modules()
    )


def _whole(alpha: float) -> Any:
    """PEFT writes alpha as it is given; keep 16 an integer in adapter_config.json."""
    return int(alpha) if float(alpha).is_integer() else alpha
