"""How ops are declared: the schema and the fake live in Python, so an op exists even when its library did not load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longspan import _native

NAMESPACE = "longspan"
REGISTERED: dict[str, str] = {}
# Op -> the formula of what its kernels take from the workspace; filled by ops/scratch when that is imported.
SCRATCH: dict[str, Callable[..., None]] = {}


def define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    """Declares op longspan::`name` with its schema and fake (shapes only) kernel."""
    if name in REGISTERED:
        raise ValueError(f"op longspan::{name} is already defined")
    torch.library.define(f"{NAMESPACE}::{name}", schema)
    torch.library.register_fake(f"{NAMESPACE}::{name}")(fake)
    REGISTERED[name] = schema
    _native.ops()


def scratch(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers `formula(workspace, *arguments of the op)`: it takes from the workspace what the op's kernel takes."""

    def add(formula: Callable[..., None]) -> Callable[..., None]:
        if name in SCRATCH:
            raise ValueError(f"op longspan::{name} has a formula of its scratch already")
        SCRATCH[name] = formula
        return formula

    return add


def require(name: str, x: Tensor) -> None:
    """Raises MissingBackendError unless op `name` has a kernel for the device of x; nothing under torch.compile."""
    if not torch.compiler.is_compiling():
        _native.require_op(name, x.device.type)


def op(name: str) -> Any:
    """The callable op longspan::`name`."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default
