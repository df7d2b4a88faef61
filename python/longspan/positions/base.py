"""What every position method's config shares."""

from __future__ import annotations

from longspan.registry import Method


class PositionMethod(Method):
    """Config of a position method: which angle a token gets."""
