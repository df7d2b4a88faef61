"""Feed-forward modules whose activations keep their inputs and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longspan import ops


def _check_activation(name: str, activation: str) -> str:
    if activation not in ops.ACTIVATIONS:
        raise ValueError(f"{name}: activation is {activation!r}; allowed: {', '.join(ops.ACTIVATIONS)}")
    return activation


class GatedMLP(nn.Module):
    """down_proj(activation(gate_proj(x)) * up_proj(x)), with the parameter names of Llama's MLP.

    Args:
        in_features: C.
        hidden_features: F.
        activation: Of `longspan.ops.glu`; "silu" makes SwiGLU, "gelu" GeGLU.
        bias: Whether the three projections have one.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        activation: str = "silu",
        bias: bool = False,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.activation = _check_activation("GatedMLP", activation)
        self.gate_proj = nn.Linear(in_features, hidden_features, bias=bias, device=device, dtype=dtype)
        self.up_proj = nn.Linear(in_features, hidden_features, bias=bias, device=device, dtype=dtype)
        self.down_proj = nn.Linear(hidden_features, in_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., C]."""
        hidden = ops.glu(self.gate_proj(x), self.up_proj(x), activation=self.activation)
        y: Tensor = self.down_proj(hidden)
        return y

    def extra_repr(self) -> str:
        """What the projections do not show."""
        return f"activation={self.activation}"


class MLP(nn.Module):
    """fc2(activation(fc1(x))), with the parameter names of OPT's feed-forward.

    Args:
        in_features: C.
        hidden_features: F.
        activation: Of `longspan.ops.activation`.
        bias: Whether the two projections have one.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int,
        activation: str = "gelu",
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.activation = _check_activation("MLP", activation)
        self.fc1 = nn.Linear(in_features, hidden_features, bias=bias, device=device, dtype=dtype)
        self.fc2 = nn.Linear(hidden_features, in_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., C] -> [..., C]."""
        y: Tensor = self.fc2(ops.activation(self.fc1(x), self.activation))
        return y

    def extra_repr(self) -> str:
        """What the projections do not show."""
        return f"activation={self.activation}"
