"""Supervised fine-tuning: cross-entropy of the next token on the labelled tokens."""

from __future__ import annotations

from typing import Literal

from longspan.registry import Method, register


class Objective(Method):
    """Config of an objective: what is learned from which tokens."""


@register("objective", "sft")
class SupervisedFineTuning(Objective):
    """The mean over all labelled tokens of a step, across rows, accumulation and ranks."""

    method: Literal["sft"] = "sft"
    reduction: Literal["token_mean"] = "token_mean"
