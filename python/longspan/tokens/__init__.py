"""Axis *tokens*: which tokens take part in a layer. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.tokens.base import TokenMethod
from longspan.tokens.lemo import LeMo
from longspan.tokens.none import AllTokens

__all__ = ["AllTokens", "LeMo", "TokenMethod"]
