"""Ops that change parameters where no gradient is taken: an optimiser's step, a perturbation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def without_grad(function: Callable[P, None]) -> Callable[P, None]:
    """Makes a function that changes tensors in place refuse what autograd watches, and run under `torch.no_grad`.

    Parameters require grad; such a call must stand under `torch.no_grad()`, as an optimiser's step does. With gradients
    enabled it raises ValueError that names the first argument with a tensor that requires grad, alone or in a list.
    """

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
        if torch.is_grad_enabled():
            for value in (*args, *kwargs.values()):
                _refuse(function.__name__, value)
        with torch.no_grad():
            function(*args, **kwargs)

    guarded.refuses_grad = True  # type: ignore[attr-defined]
    return guarded


def _refuse(name: str, value: Any) -> None:
    for each in value if isinstance(value, list | tuple) else (value,):
        if isinstance(each, Tensor) and each.requires_grad:
            raise ValueError(
                f"{name}: a tensor of shape {tuple(each.shape)} requires grad, and this op has no gradient; call it "
                "under torch.no_grad()"
            )


def changed(tensors: Iterable[Tensor]) -> None:
    """Tells autograd that an op wrote to these: what it kept of them for a gradient is then an error to use."""
    if not torch.compiler.is_compiling():
        for tensor in tensors:
            torch.autograd.graph.increment_version(tensor)
