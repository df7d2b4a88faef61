"""From a recipe to its optimizer; float32 master weights under bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from longspan import updates
from longspan.recipe import Recipe


def build_optimizer(recipe: Recipe, model: nn.Module, undecayed: Iterable[nn.Parameter] = ()) -> torch.optim.Optimizer:
    """The optimizer of `recipe.update` over the parameters that train; `undecayed` have no weight decay.

    The norm of gradients is bounded by `recipe.trainer.clip` inside the step. Parameters in bfloat16 are stepped
    through float32 masters (see `MasterWeights`). Raises ValueError if nothing trains.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError("no parameter of the model trains; check recipe.adapter and recipe.update.groups")
    alone = {id(parameter) for parameter in undecayed}
    plain = [name for name, p in trained.items() if id(p) in alone]

    def make(named: dict[str, nn.Parameter]) -> torch.optim.Optimizer:
        return updates.build(
            recipe.update,
            named,
            clip=recipe.trainer.clip,
            seed=recipe.seed,
            undecayed=[named[name] for name in plain],
        )

    if recipe.update.engine.forward_only or all(p.dtype == torch.float32 for p in trained.values()):
        return make(trained)
    return MasterWeights(trained, make)


class MasterWeights(torch.optim.Optimizer):
    """Optimizer over float32 copies of low-precision parameters (Micikevicius et al. 2017, arXiv 1710.03740,
    3.1).

    A step of bfloat16 weights smaller than their spacing would be lost; here the step happens in float32 and
    its result is rounded into the model in the same pass. Gradients are moved into the float32 copies as soon as
    backward has finished with a parameter, so accumulation over micro-batches is float32 too, and `parameter.grad` is
    always None. A parameter that is float32 already is its own master.
    """

    def __init__(self, named: dict[str, nn.Parameter], make: Callable[[dict[str, nn.Parameter]], Any]) -> None:
        self.trained = list(named.values())
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.trained]
        self.inner: Any = make(dict(zip(named, self.masters, strict=True)))
        self.inner.copies = {master: parameter for parameter, master in self.copies}
        self._handles = [
            parameter.register_post_accumulate_grad_hook(functools.partial(_move_gradient, master))
            for parameter, master in self.copies
        ]
        super().__init__(self.masters, dict(self.inner.defaults))
        # One list of groups: the scheduler writes the learning rate here and the inner optimizer reads it.
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state

    def prepare(self) -> torch.Tensor | None:
        """The norm that clips, of the float32 gradients; see `longspan.updates.FusedOptimizer.prepare`."""
        norm: torch.Tensor | None = self.inner.prepare()
        return norm

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step in float32, rounded into the model's parameters; clears the gradients."""
        if closure is not None:
            raise ValueError("MasterWeights.step takes no closure")
        self.inner.step()
        self.zero_grad()

    @property
    def copies(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Parameters that are not their own masters, with those."""
        return [(p, master) for p, master in zip(self.trained, self.masters, strict=True) if p is not master]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the float32 copies and of the parameters."""
        self.inner.zero_grad(set_to_none=set_to_none)
        for parameter in self.trained:
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's state and the float32 copies, in the order of the parameters."""
        return {**self.inner.state_dict(), "masters": [master.detach() for master in self.masters]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; the model's parameters are set to the rounded copies."""
        state_dict = dict(state_dict)
        saved = state_dict.pop("masters", None)
        if saved is None or [tuple(one.shape) for one in saved] != [tuple(one.shape) for one in self.masters]:
            raise ValueError("the saved optimizer does not hold float32 copies of the parameters that train now")
        self.inner.load_state_dict(state_dict)
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state
        with torch.no_grad():
            for parameter, master, one in zip(self.trained, self.masters, saved, strict=True):
                master.copy_(one)
                parameter.copy_(one)


def _move_gradient(master: nn.Parameter, parameter: torch.Tensor) -> None:
    """Add a finished gradient to its float32 copy and free it."""
    gradient = parameter.grad
    if gradient is None:
        return
    if master.grad is None:
        master.grad = gradient.float()
    else:
        master.grad += gradient
    parameter.grad = None
