"""Trained tensors on disk: PEFT's format with an adapter, a plain transformers checkpoint without."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from longspan import adapters
from longspan.nn.beside import beside_tensors, check_beside, take_beside
from longspan.recipe import Recipe
from longspan.train import checkpoint, hooks
from longspan.train.model import quiet

BESIDE = (adapters.TENSORS, hooks.FILE)  # files of tensors that are not the model's


def trainable(model: nn.Module) -> int:
    """Number of parameters that train; a shared (tied) one counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def attach(model: Any, recipe: Recipe) -> Any:
    """Add the recipe's adapter, or let all weights train if it names none."""
    with warnings.catch_warnings():
        # PEFT asks for a property that transformers renamed.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
        return adapters.attach(model, recipe.adapter)


def save(model: Any, folder: Path, recipe: Recipe, *, use_cache: bool = True) -> None:
    """Write the trained tensors, what methods keep, and recipe.yaml into an existing folder.

    use_cache: what config.json of a full fine-tuning run says (Trainer turns it off in the live config).
    """
    from safetensors.torch import save_file

    if recipe.adapter.method == "none":
        live = model.config.use_cache
        model.config.use_cache = use_cache
        try:
            with quiet():
                model.save_pretrained(folder)
        finally:
            model.config.use_cache = live
        kept = beside_tensors(model)
        if kept:
            save_file(kept, folder / adapters.TENSORS, {"format": "pt"})
    else:
        adapters.save(model, folder)
    (folder / checkpoint.RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")


def load(model: nn.Module, folder: Path, recipe: Recipe) -> None:
    """Read what `save` wrote back into a model that was prepared by the same recipe.

    Raises ValueError naming a tensor that is missing or of another shape.
    """
    from safetensors.torch import load_file

    if recipe.adapter.method != "none":
        adapters.load(model, folder)
        return
    own, path = beside_tensors(model), folder / adapters.TENSORS
    if own:
        kept = load_file(path) if path.is_file() else {}
        check_beside(model, kept, str(path))
    load_full(model, folder)
    if own:
        take_beside(model, kept)


def load_full(model: nn.Module, folder: Path) -> None:
    """Copy a plain checkpoint into `model`; ValueError names a missing, unknown or misshapen tensor."""
    from safetensors.torch import load_file

    files = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in BESIDE]
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors file")
    found: dict[str, torch.Tensor] = {}
    for path in files:
        found.update(load_file(path))
    own = model.state_dict()
    for name, tensor in found.items():
        if name not in own:
            raise ValueError(f"{folder}: tensor {name} is not part of the model")
        if tensor.shape != own[name].shape:
            raise ValueError(f"{folder}: tensor {name} is {list(tensor.shape)}, the model's is {list(own[name].shape)}")
    # Tied tensors are written once; any of their names will do.
    written = {own[name].data_ptr() for name in found}
    missing = [name for name, tensor in own.items() if name not in found and tensor.data_ptr() not in written]
    if missing:
        raise ValueError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all)")
    model.load_state_dict(found, strict=False)
