"""Axis *tokens*: which tokens take part in a layer. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.registry import reserve
from longspan.tokens.none import AllTokens, TokenMethod

reserve("tokens", "lemo")

__all__ = ["AllTokens", "TokenMethod"]
