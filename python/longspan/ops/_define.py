"""How ops are declared: the schema and the fake live in Python, so an op exists even when its library did not load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from longspan import _native

NAMESPACE = "longspan"
REGISTERED: dict[str, str] = {}


def define(name: str, schema: str, fake: Callable[..., Any]) -> None:
    """Declares op longspan::`name` with its schema and fake (shapes only) kernel."""
    if name in REGISTERED:
        raise ValueError(f"op longspan::{name} is already defined")
    torch.library.define(f"{NAMESPACE}::{name}", schema)
    torch.library.register_fake(f"{NAMESPACE}::{name}")(fake)
    REGISTERED[name] = schema
    _native.ops()


def op(name: str) -> Any:
    """The callable op longspan::`name`."""
    return getattr(getattr(torch.ops, NAMESPACE), name).default
