"""A linear layer with a low-rank adapter in one op."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from longspan import ops


class LoRALinear(nn.Module):
    """`torch.nn.Linear` with a trainable low-rank adapter, on `longspan.ops.lora_linear`.

    y = x W^T + bias + scaling ((dropout x) A^T) B^T. The weight and bias are frozen at first; whoever sets their
    requires_grad trains them as well. The adapter starts at zero effect: A as torch.nn.Linear's weight, B at 0.

    Args:
        in_features: C.
        out_features: N.
        rank: R, 1 to 256.
        alpha: scaling is alpha / rank, or alpha / sqrt(rank) with rank_stabilized.
        dropout: Of the adapter's input in training, 0 <= dropout < 1. Its mask is made again, never stored.
        bias: Whether there is a bias [N].
        rank_stabilized: As Kalajdzievski 2023: the update keeps its size as the rank grows.
        adapter_dtype: Of A and B; None is dtype. float32 beside a bfloat16 weight is allowed.

    Shapes: x [..., C] -> y [..., N]. Source: Hu et al. 2021.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int = 8,
        alpha: float = 16.0,
        dropout: float = 0.0,
        bias: bool = True,
        *,
        rank_stabilized: bool = False,
        adapter_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= rank <= 256:
            raise ValueError(f"LoRALinear: rank is {rank}; allowed: 1 to 256")
        if not 0 <= dropout < 1:
            raise ValueError(f"LoRALinear: dropout is {dropout}; it must be at least 0 and below 1")
        self.in_features, self.out_features, self.rank, self.dropout = in_features, out_features, rank, dropout
        self.scaling = alpha / (math.sqrt(rank) if rank_stabilized else rank)

        def new(*shape: int, to: torch.dtype | None = dtype, trains: bool) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=to), requires_grad=trains)

        self.weight = new(out_features, in_features, trains=False)
        self.bias = new(out_features, trains=False) if bias else None
        adapter = adapter_dtype or dtype
        self.lora_a = new(rank, in_features, to=adapter, trains=True)
        self.lora_b = new(out_features, rank, to=adapter, trains=True)
        self._unmerged: Tensor | None = None
        self.reset_parameters()

    @classmethod
    def from_linear(cls, linear: nn.Linear, rank: int = 8, alpha: float = 16.0, **options: Any) -> LoRALinear:
        """An adapter around a layer whose weight and bias it shares; options as in the constructor."""
        made = cls(
            linear.in_features,
            linear.out_features,
            rank,
            alpha,
            bias=linear.bias is not None,
            device=linear.weight.device,
            dtype=linear.weight.dtype,
            **options,
        )
        for name in ("weight", "bias"):
            made.register_parameter(name, linear._parameters[name])
        for shared in linear.parameters():
            shared.requires_grad_(False)
        return made

    def reset_parameters(self) -> None:
        """As torch.nn.Linear; A likewise, and B to 0."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.in_features)
            nn.init.uniform_(self.bias, -bound, bound)
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        nn.init.zeros_(self.lora_b)

    @property
    def merged(self) -> bool:
        """Whether the weight holds the adapter at the moment."""
        return self._unmerged is not None

    @torch.no_grad()
    def merge(self) -> None:
        """weight + scaling B A, added in float32 or wider and rounded once. The weight before is kept aside."""
        if self._unmerged is not None:
            return
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        delta = self.scaling * (self.lora_b.to(wide) @ self.lora_a.to(wide))
        self._unmerged = self.weight.detach().clone()
        self.weight.copy_(self.weight.to(wide).add_(delta))

    @torch.no_grad()
    def unmerge(self) -> None:
        """The weight as it was before `merge`, bit for bit."""
        if self._unmerged is not None:
            self.weight.copy_(self._unmerged)
            self._unmerged = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x [..., C] -> [..., N]; a residual [..., N] is added in the same pass."""
        if self.merged:
            return ops.lora_linear(x, self.weight, self.bias, residual=residual)
        p = self.dropout if self.training else 0.0
        return ops.lora_linear(x, self.weight, self.bias, self.lora_a, self.lora_b, self.scaling, p, residual=residual)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A checkpoint holds the weight without the adapter, merged or not: loading it can never add it twice."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self._unmerged is not None:
            destination[f"{prefix}weight"] = self._unmerged

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unmerge()
        super()._load_from_state_dict(*args, **kwargs)

    def _apply(self, fn: Any, recurse: bool = True) -> LoRALinear:
        super()._apply(fn, recurse)
        if self._unmerged is not None:
            self._unmerged = fn(self._unmerged)
        return self

    def extra_repr(self) -> str:
        """As torch prints it."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, rank={self.rank}, "
            f"scaling={self.scaling:g}, dropout={self.dropout}, bias={self.bias is not None}"
        )
