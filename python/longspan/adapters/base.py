"""What every adapter's config shares."""

from __future__ import annotations

from longspan.registry import Method


class AdapterMethod(Method):
    """Config of an adapter: which new parameters are added to the model."""
