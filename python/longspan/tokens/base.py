"""What every token method's config shares."""

from __future__ import annotations

from longspan.registry import Method


class TokenMethod(Method):
    """Config of a token method: which tokens take part in a layer."""
