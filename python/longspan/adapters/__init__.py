"""Axis *adapters*: which new parameters are added.

Importing this package loads the configs only; `attach`, `save`, `load` and `merge`
import torch and PEFT when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from longspan.adapters.base import TENSORS, AdapterMethod
from longspan.adapters.lora import LoraAdapter
from longspan.adapters.none import NoAdapter
from longspan.registry import reserve

if TYPE_CHECKING:
    from longspan.adapters.attaching import attach
    from longspan.adapters.files import load, save
    from longspan.adapters.merging import merge

reserve("adapters", "bottleneck", "prefix")

__all__ = ["TENSORS", "AdapterMethod", "LoraAdapter", "NoAdapter", "attach", "load", "merge", "save"]

# Public function -> the module that defines it, named differently: a submodule would shadow the function.
_LAZY = {"attach": "attaching", "load": "files", "merge": "merging", "save": "files"}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"longspan.adapters.{_LAZY[name]}"), name)
