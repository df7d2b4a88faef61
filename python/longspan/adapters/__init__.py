"""Axis *adapters*: which new parameters are added. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.adapters.base import AdapterMethod
from longspan.adapters.lora import LoraAdapter
from longspan.adapters.none import NoAdapter
from longspan.registry import reserve

reserve("adapters", "bottleneck", "prefix")

__all__ = ["AdapterMethod", "LoraAdapter", "NoAdapter"]
