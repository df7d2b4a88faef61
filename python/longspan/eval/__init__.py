"""Evaluation of any causal language model of transformers with full attention: perplexity and passkey
retrieval.

Importing this package is light; torch loads on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longspan.eval.passkey import passkey
    from longspan.eval.perplexity import perplexity

__all__ = ["passkey", "perplexity"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        import importlib

        value = getattr(importlib.import_module(f"longspan.eval.{name}"), name)
        globals()[name] = value  # the submodule of the same name must not hide the function
        return value
    raise AttributeError(f"module 'longspan.eval' has no attribute {name!r}")
