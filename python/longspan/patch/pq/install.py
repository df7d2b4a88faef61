"""Codebooks for the attention modules of a model whose recipe wants product-quantised attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from longspan.attention.pq import AUTO, PQAttention
from longspan.nn.codebook import Codebook
from longspan.patch import steps
from longspan.patch.pq.attend import BOOK, PQAttend
from longspan.recipe import Recipe


def install(model: Any, recipe: Recipe, modules: dict[nn.Module, tuple[int, int]]) -> dict[str, PQAttend]:
    """What `attention_forward` asks in the phases whose method is pq. modules: key heads and head size of each.

    Raises ValueError where training and prompts want different codebooks.
    """
    section = recipe.attention
    wanted = {
        phase: method for phase in ("train", "prefill") if isinstance(method := getattr(section, phase), PQAttention)
    }
    if not wanted:
        return {}
    shapes = {(one.scorer, one.subspaces, one.codewords) for one in wanted.values()}
    if len(shapes) > 1:
        raise ValueError(
            "attention: train and prefill are both pq and share codebooks; scorer, subspaces and codewords must be "
            "equal"
        )
    trained = "train" in wanted
    for module, (heads, dim) in modules.items():
        _put(module, next(iter(wanted.values())), heads, dim, trained)
    counter = steps.count_steps(model.get_decoder(), recipe.trainer.accumulate)
    return {phase: PQAttend.of(method, recipe.data.length, counter) for phase, method in wanted.items()}


def remove(model: nn.Module) -> None:
    """Take the codebooks away, also from a copy of the model."""
    for module in model.modules():
        if BOOK in module._modules:
            delattr(module, BOOK)


def forget(model: nn.Module) -> None:
    """Leave codebooks without codewords: those that a trial of the patch found are of no text."""
    for module in model.modules():
        if BOOK in module._modules:
            getattr(module, BOOK).forget()


def _put(module: nn.Module, config: PQAttention, heads: int, dim: int, trained: bool) -> None:
    like: Tensor = next(module.parameters())
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    shared = config.scorer == "match"
    pieces = None if config.subspaces == AUTO else config.subspaces
    groups, power = (1, 1) if shared else (heads, 2)
    book = Codebook(groups, dim, pieces, config.codewords, power, device=like.device, dtype=dtype)
    book.weight.requires_grad_(trained)
    setattr(module, BOOK, book)
