"""Gradient-Mask Tuning (Li et al. 2024, arXiv 2406.15330): in every step only the largest gradients take part."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan import ops
from longspan.ops import Thresholds, UpdateMask
from longspan.registry import choose
from longspan.updates.gmt import CLIP_ON, MODES, SCOPES
from longspan.updates.layers import layer_of


@dataclass(frozen=True)
class GradientMask:
    """Which elements of the accumulated gradient a step keeps: the ``keep_ratio`` largest of each tensor.

    keep_ratio: share of the elements, floor(keep_ratio n), at least one; a parameter group may have its own, and 1 in a
    group exempts it. mode: what masked elements still do, see `longspan.ops.masked_adamw_`. scope: rank within each
    "tensor", within a decoder "layer" (parameters must come with names), or "global". exact_k: of equal ones keep no
    more than asked for, the first ones; else all. clip_on: the norm that clips is that of the "masked" gradient, or of
    the "dense" one.
    """

    keep_ratio: float = 0.2
    mode: str = "grad"
    scope: str = "tensor"
    exact_k: bool = True
    clip_on: str = "masked"

    def __post_init__(self) -> None:
        if not 0 < self.keep_ratio <= 1:
            raise ValueError(f"keep_ratio is {self.keep_ratio}; it is the share that is kept, above 0 and at most 1")
        choose("mode", self.mode, MODES)
        choose("scope", self.scope, SCOPES)
        choose("clip_on", self.clip_on, CLIP_ON)

    def rank(
        self, names: Sequence[str], grads: Sequence[Tensor], ratios: Sequence[float], *, norms: bool = True
    ) -> Ranked:
        """Thresholds of gradients that are kept in part; nothing waits for the device. norms: with sums of squares."""
        groups: dict[Hashable, int] = {}
        numbers: list[int] = []
        first: list[int] = []
        sizes: list[int] = []
        kept: list[float] = []
        for name, grad, ratio in zip(names, grads, ratios, strict=True):
            group = groups.setdefault((self._group(name), ratio, grad.dtype == torch.float16), len(groups))
            if group == len(sizes):
                sizes.append(0)
                kept.append(ratio)
            numbers.append(group)
            first.append(sizes[group])
            sizes[group] += grad.numel()
        wanted = [max(1, math.floor(ratio * size)) for ratio, size in zip(kept, sizes, strict=True)]
        found = ops.kth_magnitude(grads, wanted, groups=numbers, exact=self.exact_k, norms=norms)
        masks = [UpdateMask("threshold", group=g, number=n) for g, n in zip(numbers, first, strict=True)]
        return Ranked(found, masks)

    def _group(self, name: str) -> Hashable:
        if self.scope == "tensor":
            return name
        return layer_of(name) if self.scope == "layer" else 0


@dataclass(frozen=True)
class Ranked:
    """Thresholds, and a mask for each gradient."""

    thresholds: Thresholds
    masks: list[UpdateMask]
