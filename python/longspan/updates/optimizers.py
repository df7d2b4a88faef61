"""AdamW and gradient descent in one pass, whole or with masked gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from longspan import ops
from longspan.updates.fused import Entry, FusedOptimizer
from longspan.updates.masks import GradientMask


class FusedAdamW(FusedOptimizer):
    """AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101) in one pass; `longspan.ops.masked_adamw_` has the formula.

    params, clip, rounding, clear_gradients: see `FusedOptimizer`. Without masks its steps are those of
    ``torch.optim.AdamW(fused=True)`` up to rounding.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        if lr < 0 or eps <= 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(
                f"lr {lr}, betas {betas}, eps {eps}, weight_decay {weight_decay}: rates and decay must not be "
                "negative, eps must be above 0 and betas in [0, 1)"
            )
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, **options)

    def _step_group(self, group: dict[str, Any], entries: list[Entry], options: dict[str, Any]) -> None:
        names = ("lr", "betas", "eps", "weight_decay")
        device = entries[0].parameter.device
        scalars = ops.adamw_scalars(group["step"], **{name: group[name] for name in names}, device=device)
        firsts, seconds = self._moments(entries, "exp_avg"), self._moments(entries, "exp_avg_sq")
        ops.masked_adamw_(self._stepped(entries), [e.grad for e in entries], firsts, seconds, scalars, **options)


class FusedSGD(FusedOptimizer):
    """Gradient descent with momentum in one pass; without masks the steps of ``torch.optim.SGD`` up to rounding."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        if lr < 0 or weight_decay < 0 or not 0 <= momentum < 1:
            raise ValueError(
                f"lr {lr}, momentum {momentum}, weight_decay {weight_decay}: rates and decay must not be negative and "
                "momentum must be in [0, 1)"
            )
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, **options)

    def _step_group(self, group: dict[str, Any], entries: list[Entry], options: dict[str, Any]) -> None:
        names = ("lr", "momentum", "weight_decay")
        scalars = ops.sgd_scalars(**{name: group[name] for name in names}, device=entries[0].parameter.device)
        buffers = self._moments(entries, "momentum_buffer") if group["momentum"] else None
        ops.masked_sgd_(self._stepped(entries), [e.grad for e in entries], buffers, scalars, **options)


class _GradientMasked(FusedOptimizer):
    """The arguments of a mask before those of an optimizer."""

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        keep_ratio: float = 0.2,
        mode: str = "grad",
        *,
        scope: str = "tensor",
        exact_k: bool = True,
        clip_on: str = "masked",
        **options: Any,
    ) -> None:
        mask = GradientMask(keep_ratio, mode, scope, exact_k, clip_on)
        super().__init__(params, lr, mask=mask, **options)  # type: ignore[arg-type]


class GradientMaskAdamW(_GradientMasked, FusedAdamW):
    """AdamW in which only the ``keep_ratio`` largest gradients of each tensor take part (Li et al. 2024, 2406.15330).

    mode "grad" (as published): masked elements have gradient 0, and what is left of their moments still moves them;
    "update": moments take the whole gradient, the step is masked; "freeze": not a bit of a masked element changes.
    scope, exact_k, clip_on: see `GradientMask`. Every parameter is masked; a group with keep_ratio 1 is exempt.
    """


class GradientMaskSGD(_GradientMasked, FusedSGD):
    """The same for gradient descent: the form in which the paper writes its step."""
