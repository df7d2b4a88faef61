"""From a recipe's update engine to a torch optimizer; float32 master weights under bfloat16."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


def build_optimizer(
    engine: Any, parameters: Iterable[nn.Parameter], undecayed: Iterable[nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """The optimizer of `recipe.update.engine` over the parameters that train; `undecayed` have no weight decay.

    Parameters in bfloat16 are stepped through float32 masters (see `MasterWeights`). Raises ValueError if
    nothing trains or if the engine has no optimizer here.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ValueError("no parameter of the model trains; check recipe.adapter")
    alone = {id(parameter) for parameter in undecayed}
    make = functools.partial(_grouped, _factory(engine), [id(parameter) in alone for parameter in trained])
    if any(parameter.dtype != torch.float32 for parameter in trained):
        return MasterWeights(trained, make)
    return make(trained)


def _grouped(
    make: Callable[[list[Any]], torch.optim.Optimizer], plain: list[bool], parameters: list[nn.Parameter]
) -> torch.optim.Optimizer:
    """Two groups where some parameters have no weight decay, else one."""
    if not any(plain):
        return make(parameters)
    decayed = [p for p, alone in zip(parameters, plain, strict=True) if not alone]
    others = [p for p, alone in zip(parameters, plain, strict=True) if alone]
    groups = [{"params": decayed}] if decayed else []
    return make([*groups, {"params": others, "weight_decay": 0.0}])


def _factory(engine: Any) -> Callable[[list[Any]], torch.optim.Optimizer]:
    if engine.method == "adamw":
        # The fused step reads every tensor once; it exists on CPU and CUDA and gives the same bits on every
        # run.
        return functools.partial(
            torch.optim.AdamW,
            lr=engine.lr,
            betas=tuple(engine.betas),
            eps=engine.eps,
            weight_decay=engine.weight_decay,
            fused=True,
        )
    if engine.method == "sgd":
        return functools.partial(
            torch.optim.SGD, lr=engine.lr, momentum=engine.momentum, weight_decay=engine.weight_decay
        )
    raise ValueError(f"update engine {engine.method!r} has no optimizer; available: adamw, sgd")


class MasterWeights(torch.optim.Optimizer):
    """Optimizer over float32 copies of low-precision parameters (Micikevicius et al. 2017, arXiv 1710.03740,
    3.1).

    A step of bfloat16 weights smaller than their spacing would be lost; here the step happens in float32 and
    its result is rounded into the model. Gradients are moved into the float32 copies as soon as backward has
    finished with a parameter, so accumulation over micro-batches is float32 too, and `parameter.grad` is
    always None. A parameter that is float32 already is its own master.
    """

    def __init__(self, parameters: list[nn.Parameter], make: Callable[[list[Any]], torch.optim.Optimizer]) -> None:
        self.trained = parameters
        self.masters = [
            parameter if parameter.dtype == torch.float32 else nn.Parameter(parameter.detach().float().clone())
            for parameter in parameters
        ]
        self.inner = make(self.masters)
        self._handles = [
            parameter.register_post_accumulate_grad_hook(functools.partial(_move_gradient, master))
            for parameter, master in self.copies
        ]
        super().__init__(self.masters, dict(self.inner.defaults))
        # One list of groups: the scheduler writes the learning rate here and the inner optimizer reads it.
        self.param_groups = self.inner.param_groups
        self.state = self.inner.state

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step in float32, rounded into the model's parameters; clears the gradients."""
        if closure is not None:
            raise ValueError("MasterWeights.step takes no closure")
        self.inner.step()
        with torch.no_grad():
            for parameter, master in self.copies:
                parameter.copy_(master)
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
