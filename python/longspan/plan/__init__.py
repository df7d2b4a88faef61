"""Memory of a run before it starts: a dry run of the real code on tensors without memory.

`predict` gives the peak of one training step by part, `largest_length` the longest rows that fit a budget, `choices`
what other recipes would need, `least_recompute` what `memory.recompute: auto` means.
"""

from __future__ import annotations

from longspan.ops.scratch import Machine
from longspan.plan.choices import Choice, choices, least_recompute
from longspan.plan.length import largest_length
from longspan.plan.predict import Prediction, Subject, predict

__all__ = ["Choice", "Machine", "Prediction", "Subject", "choices", "largest_length", "least_recompute", "predict"]
