"""Gated and plain activations from their definitions; run it in float64 and it is the oracle."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def glu(gate: Tensor, up: Tensor | None, activation: str) -> Tensor:
    """See `longspan.ops.glu`. Differentiable by torch."""
    if activation == "silu":
        y = gate * torch.sigmoid(gate)
    elif activation == "gelu":
        y = gate * torch.special.erfc(-gate * math.sqrt(0.5)) * 0.5
    elif activation == "gelu_tanh":
        y = gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3))) * 0.5
    elif activation == "relu":
        y = torch.relu(gate)
    else:
        assert activation == "relu2"
        y = torch.relu(gate).square()
    return y if up is None else y * up
