"""Norm modules with a fused residual add."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor, nn

from longspan import ops


def _features(name: str, shape: int | tuple[int, ...] | list[int]) -> int:
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(sizes) != 1 or sizes[0] < 1:
        raise ValueError(f"{name}: normalized_shape is {shape}; it must be one positive number, the last dimension")
    return sizes[0]


class RMSNorm(nn.Module):
    """`torch.nn.RMSNorm` over the last dimension, on `longspan.ops.rms_norm`.

    Args:
        normalized_shape: C, or (C,).
        eps: Inside the root; None is the machine epsilon of the input's dtype, as in torch.
        elementwise_affine: Whether there is a weight [C], 1 at first.
        weight_offset: Added to the weight: 1 for models that store weight - 1 (Gemma); the weight then starts at 0.

    Shapes: x [..., C] -> y [..., C]; with a residual [..., C] the result is (y, x + residual).
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | list[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        *,
        weight_offset: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features = _features("RMSNorm", normalized_shape)
        self.eps, self.weight_offset = eps, weight_offset
        self.weight: nn.Parameter | None = None
        if elementwise_affine:
            self.weight = nn.Parameter(torch.empty(self.features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets weight_offset + weight to 1."""
        if self.weight is not None:
            nn.init.constant_(self.weight, 1.0 - self.weight_offset)

    @overload
    def forward(self, x: Tensor, residual: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The norm of x, or of x + residual together with that sum."""
        _check_width("RMSNorm", x, self.features)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        return ops.rms_norm(x, self.weight, residual=residual, eps=eps, weight_offset=self.weight_offset)

    def extra_repr(self) -> str:
        """As torch prints it."""
        return f"{self.features}, eps={self.eps}, elementwise_affine={self.weight is not None}"


class LayerNorm(nn.Module):
    """`torch.nn.LayerNorm` over the last dimension, on `longspan.ops.layer_norm`.

    Args:
        normalized_shape: C, or (C,).
        eps: Inside the root.
        elementwise_affine: Whether there is a weight [C], 1 at first.
        bias: Whether there is a bias [C], 0 at first; only with elementwise_affine.

    Shapes: as `RMSNorm`.
    """

    def __init__(
        self,
        normalized_shape: int | tuple[int, ...] | list[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.features = _features("LayerNorm", normalized_shape)
        self.eps = eps
        self.weight: nn.Parameter | None = None
        self.bias: nn.Parameter | None = None
        if elementwise_affine:
            self.weight = nn.Parameter(torch.empty(self.features, device=device, dtype=dtype))
            if bias:
                self.bias = nn.Parameter(torch.empty(self.features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets weight to 1 and bias to 0."""
        if self.weight is not None:
            nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @overload
    def forward(self, x: Tensor, residual: None = None) -> Tensor: ...
    @overload
    def forward(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]: ...
    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The norm of x, or of x + residual together with that sum."""
        _check_width("LayerNorm", x, self.features)
        return ops.layer_norm(x, self.weight, self.bias, residual=residual, eps=self.eps)

    def extra_repr(self) -> str:
        """As torch prints it."""
        affine = self.weight is not None
        return f"{self.features}, eps={self.eps}, elementwise_affine={affine}, bias={self.bias is not None}"


def _check_width(name: str, x: Tensor, features: int) -> None:
    if x.dim() < 1 or x.shape[-1] != features:
        raise ValueError(f"{name}: x has shape {tuple(x.shape)}; its last dimension must be {features}")
