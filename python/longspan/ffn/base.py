"""What every feed-forward method's config shares."""

from __future__ import annotations

from longspan.registry import Method


class FeedForwardMethod(Method):
    """Config of a feed-forward method: which weight blocks are computed while training."""
