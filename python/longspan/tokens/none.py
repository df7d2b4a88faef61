"""Every token takes part in every layer."""

from __future__ import annotations

from typing import Literal

from longspan.registry import Method, register


class TokenMethod(Method):
    """Config of a token method: which tokens take part in a layer."""


@register("tokens", "none")
class AllTokens(TokenMethod):
    """Eliminate nothing."""

    method: Literal["none"] = "none"
