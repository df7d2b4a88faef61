"""Every token takes part in every layer."""

from __future__ import annotations

from typing import Literal

from longspan.registry import register
from longspan.tokens.base import TokenMethod


@register("tokens", "none")
class AllTokens(TokenMethod):
    """Eliminate nothing."""

    method: Literal["none"] = "none"
