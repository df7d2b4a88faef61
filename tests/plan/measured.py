"""A real training step, and what it needed: the figure that a plan predicts."""

from __future__ import annotations

import gc
from typing import Any

import torch
from torch import nn

from longspan import adapters, patch, updates
from longspan.memory import measure
from longspan.plan import Machine, Prediction, Subject, predict
from longspan.plan.step import batch_of
from longspan.recipe import Recipe
from longspan.train.optimizer import build_optimizer
from tests.patch.families import FAMILIES


def prepared(model: Any, recipe: Recipe, *, patched: bool = True) -> Any:
    """The model as the trainer prepares it, with an adapter, in one dtype, patched, in training mode."""
    dtype = getattr(torch, recipe.dtype)
    model = adapters.attach(model.to(dtype), recipe.adapter)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    updates.select(model, recipe.update, seed=recipe.seed, all_weights=recipe.adapter.method == "none")
    if patched:
        patch(model, recipe)
    model.train()
    if recipe.memory.recompute == "layer":
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    return model


def held_bytes(model: nn.Module) -> int:
    """Bytes of the storages of all parameters and buffers, shared ones once."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def peak_of_steps(model: Any, recipe: Recipe, steps: int = 2) -> int:
    """The most bytes that live during `steps` steps, weights included; the second has the optimiser's state."""
    gc.collect()
    held = held_bytes(model)
    with measure() as m:
        optimizer = build_optimizer(recipe, model)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        hooks = [hook.start(trained) for hook in recipe.update.hooks]
        for _ in range(steps):
            _step(model, recipe, optimizer)
        del hooks
    return held + m.peak_bytes


def _step(model: Any, recipe: Recipe, optimizer: Any) -> None:
    if recipe.update.engine.forward_only:
        model.eval()
        optimizer.step(lambda: _loss(model, recipe))
        return
    for _ in range(recipe.trainer.accumulate):
        _loss(model, recipe).backward()
    optimizer.prepare()
    optimizer.step()
    optimizer.zero_grad()


def _loss(model: Any, recipe: Recipe) -> torch.Tensor:
    batch = batch_of(recipe)
    loss: torch.Tensor = model(**batch, num_items_in_batch=(batch["labels"] != -100).sum())["loss"]
    return loss


def sized(family: str, length: int, **changes: Any) -> tuple[Any, type]:
    """A config of a family with matrices large enough that they, not small vectors, decide; and its model class."""
    import transformers

    config_class, model_class, options = FAMILIES[family]
    options = {**options, "hidden_size": 256, "num_hidden_layers": 3, "vocab_size": 512, **changes}
    options["max_position_embeddings"] = length
    for name, value in (("intermediate_size", 768), ("ffn_dim", 768), ("word_embed_proj_dim", 256), ("head_dim", 64)):
        if name in options:
            options[name] = value
    return getattr(transformers, config_class)(**options), getattr(transformers, model_class)


def linear_names(family: str) -> list[str]:
    """Targets of LoRA in the attention of a family."""
    own = {"phi3": ["qkv_proj", "o_proj"], "gpt_neox": ["query_key_value", "dense"], "gpt2": ["c_attn"]}
    own["opt"] = ["q_proj", "v_proj", "out_proj"]
    return own.get(family, ["q_proj", "k_proj", "v_proj", "o_proj"])


def both(family: str, recipe: Recipe, *, patched: bool = True) -> tuple[Prediction, int]:
    """The prediction from the config alone, and the peak of real steps, for a model of a family."""
    config, model_class = sized(family, recipe.data.length)
    subject = Subject(recipe, config, build_optimizer, Machine.here(), patched)
    prediction = predict(subject, extrapolate=False)
    torch.manual_seed(0)
    return prediction, peak_of_steps(prepared(model_class(config), recipe, patched=patched), recipe)
