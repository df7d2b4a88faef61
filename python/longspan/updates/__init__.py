"""Axis *updates*: which parameters change, and how. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.registry import reserve
from longspan.updates.adamw import AdamW
from longspan.updates.base import UpdateEngine, UpdateTransform
from longspan.updates.sgd import Sgd

reserve("update_engine", "mezo", "es")
reserve("update_transform", "gmt", "hft", "neft", "component_clip")

__all__ = ["AdamW", "Sgd", "UpdateEngine", "UpdateTransform"]
