"""One training step on fake tensors, as the trainer makes it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from longspan import data
from longspan.ops.scratch import Machine
from longspan.plan.fake import FakeModel
from longspan.plan.host import count_offload
from longspan.plan.ledger import GRADIENTS, INPUTS, OPTIMIZER, WEIGHTS, Ledger
from longspan.plan.parts import Parts
from longspan.recipe import Recipe

MakeOptimizer = Callable[[Recipe, nn.Module], torch.optim.Optimizer]


def dry_run(
    fake: FakeModel, recipe: Recipe, make_optimizer: MakeOptimizer, machine: Machine
) -> dict[str, Counter[str]]:
    """What is live at the peak of each segment of a step, by part; see `segments`."""
    model = fake.model
    model.train()
    if recipe.memory.recompute == "layer":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    parts = Parts(model, fake.base.get_output_embeddings(), fake.decoder_layers)
    ledger = Ledger(machine, parts, fake.mode)
    count_offload(fake.decoder_layers, ledger)
    handles = _mark_layers(fake.decoder_layers, ledger)
    try:
        with ledger, parts.watching(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ledger.hold(_tensors(model), WEIGHTS)
            optimizer: Any = make_optimizer(recipe, model)
            forward_only = recipe.update.engine.forward_only
            if not forward_only:
                _make_state(optimizer)
            ledger.hold(_state(optimizer), OPTIMIZER)
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            hooks = [hook.start(trained) for hook in recipe.update.hooks]
            ledger.hold([x for hook in hooks for x in hook.state_dict().values()], OPTIMIZER)
            ledger.begin()
            if forward_only:
                model.eval()
                _forward(model, recipe, ledger)
                return ledger.peaks()
            for _ in range(min(recipe.trainer.accumulate, 2)):
                _forward_backward(model, recipe, ledger)
                ledger.hold(_gradients(model, optimizer), GRADIENTS)
            ledger.mark("update")
            optimizer.prepare()
            optimizer.step()
            return ledger.peaks()
    finally:
        for handle in handles:
            handle.remove()


def batch_of(recipe: Recipe) -> dict[str, Any]:
    """A flattened batch of full rows; packed rows hold two documents."""
    length = recipe.data.length
    lengths = [length - length // 2, length // 2] if recipe.data.packing == "documents" else [length]
    ids = [1] * length
    row: Any = {"input_ids": ids, "labels": ids, "doc_lengths": lengths}
    return data.collate([row] * recipe.trainer.batch)


def _forward_backward(model: Any, recipe: Recipe, ledger: Ledger) -> None:
    loss = _forward(model, recipe, ledger)
    ledger.mark("backward")
    one = torch.ones((), dtype=loss.dtype)
    if ledger.machine.device == "cuda":
        one = ledger.mode.from_tensor(one)  # a factor on a GPU cannot be read for free
    torch.autograd.backward(loss, one)


def _forward(model: Any, recipe: Recipe, ledger: Ledger) -> Tensor:
    batch = batch_of(recipe)
    tensors = [x for x in batch.values() if isinstance(x, Tensor)]
    ledger.hold(tensors, INPUTS)
    ledger.mark("forward")
    labels = (batch["labels"] != -100).sum()
    with ledger.running_forward(), torch.set_grad_enabled(not recipe.update.engine.forward_only):
        return _loss(model, batch, labels)


def _loss(model: Any, batch: dict[str, Any], items: Tensor) -> Tensor:
    outputs = model(**batch, num_items_in_batch=items)
    loss: Tensor = outputs["loss"]
    return loss


def _make_state(optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's state as after a first step."""
    owners = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in owners:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    state = [x for entry in optimizer.state.values() for x in entry.values() if isinstance(x, Tensor)]
    return [*state, *getattr(optimizer, "masters", ())]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _gradients(model: nn.Module, optimizer: Any) -> list[Tensor]:
    owners = [*model.parameters(), *getattr(optimizer, "masters", ())]
    return [p.grad for p in owners if p.grad is not None]


def _mark_layers(layers: list[nn.Module], ledger: Ledger) -> list[Any]:
    """Start a segment where a layer begins, forward and backward."""
    handles: list[Any] = []
    for index, layer in enumerate(layers):

        def enter(_: nn.Module, __: Any, index: int = index) -> None:
            if ledger.forward:
                ledger.mark(f"forward {index}")

        def leave(_: nn.Module, __: Any, output: Any, index: int = index) -> None:
            if not ledger.forward:
                return
            hidden = output[0] if isinstance(output, tuple) else output
            if index == len(layers) - 1:
                ledger.mark("head")
            if hidden.requires_grad:
                hidden.register_hook(lambda gradient, index=index: ledger.mark(f"backward {index}"))

        handles += [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]
    return handles
