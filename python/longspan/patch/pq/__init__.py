"""Attention over the keys that product-quantised scores choose, call by call."""

from longspan.patch.pq.attend import BOOK, PQAttend
from longspan.patch.pq.install import forget, install, remove

__all__ = ["BOOK", "PQAttend", "forget", "install", "remove"]
