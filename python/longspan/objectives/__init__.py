"""Axis *objective*: what is learned from which tokens. Importing this package loads the configs only."""

from __future__ import annotations

from longspan.objectives.sft import Objective, SupervisedFineTuning
from longspan.registry import reserve

reserve("objective", "dft")

__all__ = ["Objective", "SupervisedFineTuning"]
