"""longspan: fine-tune Hugging Face causal language models on contexts far longer than memory and time would allow.

Importing is cheap and never fails for lack of a GPU or of the native library; `longspan.report()` says what is there.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
"""The version of this installation."""

if TYPE_CHECKING:
    from longspan.ops import AttentionPattern, TokenLayout
    from longspan.patch import PatchReport, patch
    from longspan.recipe import Recipe
    from longspan.report import report

# Public name -> the module that defines it; imported on first use.
_LAZY = {
    "AttentionPattern": "longspan.ops",
    "TokenLayout": "longspan.ops",
    "PatchReport": "longspan.patch",
    "patch": "longspan.patch",
    "Recipe": "longspan.recipe",
    "report": "longspan.report",
}
_MODULES = ("adapters", "attention", "data", "eval", "kernels", "ops", "positions", "train")

__all__ = ["AttentionPattern", "PatchReport", "Recipe", "TokenLayout", "__version__", "patch", "report"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value  # a submodule of the same name must not shadow the function
        return value
    if name in _MODULES:
        return importlib.import_module(f"longspan.{name}")
    raise AttributeError(f"module 'longspan' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, *_MODULES})
