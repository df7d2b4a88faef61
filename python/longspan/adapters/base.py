"""What every adapter's config shares."""

from __future__ import annotations

from longspan.registry import Method

TENSORS = "longspan.safetensors"
"""The file beside an adapter or a model with what trains in full, and what methods keep."""


class AdapterMethod(Method):
    """Config of an adapter: which new parameters are added to the model."""
