"""What every position method's config shares."""

from __future__ import annotations

from typing import Any

from longspan.registry import Method


class PositionMethod(Method):
    """Config of a position method: which angle a token gets."""

    def rescale(self, rope: dict[str, Any]) -> dict[str, Any] | None:
        """The rotary parameters that a model with the parameters ``rope`` gets, or None to leave it alone.

        ``rope`` has transformers' keys (rope_type, rope_theta, factor, ...) and is not changed. Raises
        ``ValueError`` for a ``rope_type`` that the method does not compose with.
        """
        raise TypeError(f"{type(self).__name__} does not define rescale()")

    def stretch(self) -> float:
        """By how much the longest position grows."""
        return 1.0
