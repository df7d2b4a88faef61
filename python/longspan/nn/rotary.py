"""Angles of rotary position embeddings, as tables that all layers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from longspan import ops


class RotaryEmbedding(nn.Module):
    """cos and sin for `longspan.ops.rope`.

    Args:
        dim: Columns of a head that turn, even.
        base: Frequencies are base^(-2 i / dim) for i < dim / 2.
        factor: Position interpolation (Chen et al. 2023): positions are divided by it.
        inv_freq: [dim / 2], other frequencies (NTK, YaRN, LongRoPE) instead of those of `base`.
        scaling: What cos and sin are multiplied by (the attention factor of YaRN and LongRoPE).

    The tables grow to the longest length that was asked for, are float32 and not part of the state_dict.
    """

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        *,
        factor: float = 1.0,
        inv_freq: Tensor | None = None,
        scaling: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"RotaryEmbedding: dim is {dim}; it must be even and at least 2")
        if not factor > 0:
            raise ValueError(f"RotaryEmbedding: factor is {factor}; it must be positive")
        if inv_freq is None:
            inv_freq = base ** -(torch.arange(0, dim, 2, device=device, dtype=torch.float64) / dim)
        if inv_freq.shape != (dim // 2,):
            raise ValueError(f"RotaryEmbedding: inv_freq has shape {tuple(inv_freq.shape)}; it must be ({dim // 2},)")
        self.dim, self.scaling = dim, scaling
        # As an attribute and not a buffer: `module.to(bfloat16)` must not round frequencies.
        self._inv_freq = inv_freq.detach().double() / factor
        self._tables: tuple[Tensor, Tensor] | None = None

    def forward(self, length: int, device: torch.device | str | None = None) -> tuple[Tensor, Tensor]:
        """cos and sin [length, dim / 2], float32, for positions 0 to length - 1."""
        device = torch.device("cpu" if device is None else device)
        tables = self._tables
        if tables is None or tables[0].shape[0] < length or tables[0].device != device:
            tables = self._tables = ops.rope_table(self._inv_freq.to(device), length, scaling=self.scaling)
        return tables[0][:length], tables[1][:length]

    def extra_repr(self) -> str:
        """The width."""
        return f"{self.dim}"
