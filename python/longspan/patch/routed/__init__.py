"""Feed-forward layers of which each token meets some blocks."""

from longspan.patch.routed.feed_forward import LayerRoute
from longspan.patch.routed.install import describe, remove, routes_of

__all__ = ["LayerRoute", "describe", "remove", "routes_of"]
