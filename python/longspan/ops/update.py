"""Optimiser steps over many tensors in one pass, with a mask that says which elements take part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longspan.ops._define import define, op, require
from longspan.ops._in_place import changed, without_grad
from longspan.ops.magnitude import Thresholds

KINDS = ("all", "threshold", "bits", "rows", "columns", "none")
MODES = ("grad", "update", "freeze")
PARAMETERS = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class UpdateMask:
    """Which elements of one parameter a step keeps.

    kind: "all"; "threshold", |g| above the threshold of `group` of what `kth_magnitude` found, or equal to it and,
    numbered from `number` within the group, below its cut; "bits", mask uint8 [ceil(n / 8)], element i in bit i % 8 of
    byte i // 8; "rows", mask uint8 [n // columns], one a row of the last dimension; "columns", mask uint8 [columns];
    "none", a frozen tensor.
    """

    kind: str = "all"
    mask: Tensor | None = None
    group: int = 0
    number: int = 0


def adamw_scalars(
    step: int,
    *,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """float32 [8] for `masked_adamw_`, of the step numbered from 1; computed in float64, each number rounded once.

    Raises ValueError for numbers out of range.
    """
    if step < 1:
        raise ValueError(f"adamw_scalars: step is {step}; steps are numbered from 1")
    _check_finite("adamw_scalars", lr=lr, weight_decay=weight_decay)
    if len(betas) != 2:
        raise ValueError(f"adamw_scalars: betas are {betas}; there must be two")
    one, two = betas
    if not (0 <= one < 1 and 0 <= two < 1 and 0 <= eps < math.inf):
        raise ValueError(
            f"adamw_scalars: betas are {betas} and eps {eps}; betas must be at least 0 and below 1, eps not be negative"
        )
    numbers = [1 - lr * weight_decay, one, 1 - one, two, 1 - two, lr / (1 - one**step), math.sqrt(1 - two**step), eps]
    return torch.tensor(numbers, dtype=torch.float64).float().to(device)


def sgd_scalars(
    *, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, device: torch.device | str = "cpu"
) -> Tensor:
    """float32 [3] for `masked_sgd_`. Raises ValueError for numbers that are not finite."""
    _check_finite("sgd_scalars", lr=lr, momentum=momentum, weight_decay=weight_decay)
    return torch.tensor([lr, momentum, weight_decay], dtype=torch.float64).float().to(device)


def _check_finite(name: str, **numbers: float) -> None:
    for label, value in numbers.items():
        if not math.isfinite(value):
            raise ValueError(f"{name}: {label} is {value}; it must be finite")


@without_grad
def masked_adamw_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    scalars: Tensor,
    *,
    masks: Sequence[UpdateMask] | None = None,
    thresholds: Thresholds | None = None,
    mode: str = "grad",
    factors: Tensor | None = None,
    copies: Sequence[Tensor | None] | None = None,
    zero_grad: bool = False,
    stochastic_seed: int | None = None,
) -> None:
    """One AdamW step in place, reading and writing each byte once:

        p = p (1 - lr weight_decay);  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
        p = p - lr / (1 - b1^t) m / (sqrt(v) / sqrt(1 - b2^t) + eps)

    params: float32 or bfloat16; grads: float32, bfloat16, on CUDA float16; exp_avgs, exp_avg_sqs: float32; all
    contiguous. scalars: `adamw_scalars`. masks: one for each parameter (default: everything is kept); thresholds: for
    masks of that kind. factors: float32 [n], gradients are multiplied by them (clipping); where one is NaN, nothing of
    that tensor changes but that its gradient is cleared. copies: bfloat16 (on CUDA also float16) tensors that get the
    rounded weights. zero_grad: gradients become 0. stochastic_seed: bfloat16 parameters are rounded up with the
    probability of what is cut off, by Philox with this key; else to nearest even.

    mode says what masked elements still do: "grad", their gradient is 0, so moments fade and what is left of them moves
    the weight, and decay does; "update", moments take the whole gradient, and decay alone moves the weight; "freeze",
    no bit of weight and moments changes. Where everything is kept the three are one, bit for bit. Arithmetic is in
    float32, each operation rounded, the same bits with any number of threads.

    Raises ValueError naming what does not fit and for tensors that require grad outside `torch.no_grad`,
    MissingBackendError when no kernel serves the device.
    Source: Loshchilov and Hutter 2017, algorithm 2; modes: Gradient-Mask Tuning (Li et al. 2024, arXiv 2406.15330).
    """
    call = _Call("masked_adamw_", params, grads, masks, thresholds, mode, factors, copies)
    call.check_scalars(scalars, 8, "adamw_scalars")
    call.check_moments("exp_avgs", exp_avgs)
    call.check_moments("exp_avg_sqs", exp_avg_sqs)
    op("masked_adamw_")(
        list(params),
        list(grads),
        list(exp_avgs),
        list(exp_avg_sqs),
        *call.arguments(scalars, zero_grad, stochastic_seed),
    )
    changed([*params, *exp_avgs, *exp_avg_sqs, *(grads if zero_grad else ()), *call.given_copies])


@without_grad
def masked_sgd_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor] | None,
    scalars: Tensor,
    *,
    masks: Sequence[UpdateMask] | None = None,
    thresholds: Thresholds | None = None,
    mode: str = "grad",
    factors: Tensor | None = None,
    copies: Sequence[Tensor | None] | None = None,
    zero_grad: bool = False,
    stochastic_seed: int | None = None,
) -> None:
    """One step of gradient descent in place: g = g + weight_decay p; b = momentum b + g; p = p - lr b.

    buffers: momentum, float32, or None without. scalars: `sgd_scalars`. In mode "update" the buffer takes the whole
    gradient and masked weights stay. All else, errors too, as in `masked_adamw_`.
    """
    call = _Call("masked_sgd_", params, grads, masks, thresholds, mode, factors, copies)
    call.check_scalars(scalars, 3, "sgd_scalars")
    if buffers is not None:
        call.check_moments("buffers", buffers)
    listed = [call.nothing(torch.float32)] * len(params) if buffers is None else list(buffers)
    op("masked_sgd_")(list(params), list(grads), listed, *call.arguments(scalars, zero_grad, stochastic_seed))
    changed([*params, *(buffers or ()), *(grads if zero_grad else ()), *call.given_copies])


class _Call:
    """The arguments that both steps share, checked."""

    def __init__(
        self,
        name: str,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        masks: Sequence[UpdateMask] | None,
        thresholds: Thresholds | None,
        mode: str,
        factors: Tensor | None,
        copies: Sequence[Tensor | None] | None,
    ) -> None:
        self.name, self.params, self.thresholds, self.mode = name, params, thresholds, mode
        if not params:
            raise ValueError(f"{name}: the list of params is empty")
        if mode not in MODES:
            raise ValueError(f"{name}: mode is {mode!r}; allowed: {', '.join(MODES)}")
        self.device = params[0].device
        self.masks = [UpdateMask()] * len(params) if masks is None else list(masks)
        copied = [None] * len(params) if copies is None else list(copies)
        for what, listed in (("grads", grads), ("masks", self.masks), ("copies", copied)):
            if len(listed) != len(params):
                raise ValueError(f"{name}: {what} has {len(listed)} entries; there are {len(params)} params")
        half = (torch.float16,) if self.device.type == "cuda" else ()
        for i, (p, g, copy) in enumerate(zip(params, grads, copied, strict=True)):
            self._check_one(f"params[{i}]", p, p, PARAMETERS)
            self._check_one(f"grads[{i}]", g, p, (torch.float32, torch.bfloat16, *half))
            if copy is not None:
                self._check_one(f"copies[{i}]", copy, p, (torch.bfloat16, *half))
            self._check_mask(i)
        self.factors = torch.ones(len(params), device=self.device) if factors is None else factors
        if (self.factors.dtype, self.factors.shape, self.factors.device) != (
            torch.float32,
            (len(params),),
            self.device,
        ):
            raise ValueError(
                f"{name}: factors is {self.factors.dtype} {tuple(self.factors.shape)} on {self.factors.device}; it "
                f"must be float32 ({len(params)},) on {self.device}"
            )
        if thresholds is not None and thresholds.bits.device != self.device:
            raise ValueError(f"{name}: thresholds are on {thresholds.bits.device}; params are on {self.device}")
        self.copies = [self.nothing(torch.bfloat16) if copy is None else copy for copy in copied]
        self.given_copies = [copy for copy in copied if copy is not None]
        require(name, params[0])

    def nothing(self, dtype: torch.dtype) -> Tensor:
        """Stands for no tensor in a list."""
        return torch.empty(0, dtype=dtype, device=self.device)

    def _check_one(self, what: str, x: Tensor, like: Tensor, dtypes: tuple[torch.dtype, ...]) -> None:
        if x.dtype not in dtypes:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{self.name}: {what} is {x.dtype}; allowed: {allowed}")
        if x.shape != like.shape or x.device != self.device or not x.is_contiguous():
            raise ValueError(
                f"{self.name}: {what} has shape {tuple(x.shape)} on {x.device}; it must be contiguous, "
                f"{tuple(like.shape)} on {self.device}"
            )

    def _check_mask(self, i: int) -> None:
        mask, p = self.masks[i], self.params[i]
        if mask.kind not in KINDS:
            raise ValueError(f"{self.name}: masks[{i}] is of kind {mask.kind!r}; allowed: {', '.join(KINDS)}")
        if mask.kind == "threshold" and (self.thresholds is None or not 0 <= mask.group < len(self.thresholds.bits)):
            groups = 0 if self.thresholds is None else len(self.thresholds.bits)
            raise ValueError(f"{self.name}: masks[{i}] needs threshold {mask.group}; {groups} are given")
        columns = p.shape[-1] if p.dim() else 1
        lengths = {"bits": -(-p.numel() // 8), "rows": p.numel() // max(1, columns), "columns": columns}
        if mask.kind in lengths:
            wanted, x = (lengths[mask.kind],), mask.mask
            if x is None or x.dtype != torch.uint8 or x.shape != wanted or x.device != self.device:
                given = "missing" if x is None else f"{x.dtype} {tuple(x.shape)} on {x.device}"
                raise ValueError(
                    f"{self.name}: the {mask.kind} of masks[{i}] are {given}; they must be uint8 {wanted} on "
                    f"{self.device}"
                )

    def check_scalars(self, scalars: Tensor, count: int, maker: str) -> None:
        """Refuses scalars of another step."""
        if scalars.dtype != torch.float32 or scalars.shape != (count,) or scalars.device != self.device:
            raise ValueError(
                f"{self.name}: scalars is {scalars.dtype} {tuple(scalars.shape)} on {scalars.device}; it must be "
                f"float32 ({count},) on {self.device}; {maker} makes it"
            )

    def check_moments(self, what: str, moments: Sequence[Tensor]) -> None:
        """Refuses state that does not fit the parameters."""
        if len(moments) != len(self.params):
            raise ValueError(f"{self.name}: {what} has {len(moments)} entries; there are {len(self.params)} params")
        for i, (x, p) in enumerate(zip(moments, self.params, strict=True)):
            self._check_one(f"{what}[{i}]", x, p, (torch.float32,))

    def arguments(self, scalars: Tensor, zero_grad: bool, stochastic_seed: int | None) -> tuple[object, ...]:
        """What both ops take after their state."""
        found, given = self.thresholds, self.masks
        return (
            self.copies,
            [KINDS.index(mask.kind) for mask in given],
            [self.nothing(torch.uint8) if mask.mask is None else mask.mask for mask in given],
            [mask.group for mask in given],
            [mask.number for mask in given],
            None if found is None else found.bits,
            None if found is None else found.cut,
            self.factors,
            scalars,
            self.mode,
            zero_grad,
            stochastic_seed is not None,
            stochastic_seed or 0,
        )


_SHARED = (
    "Tensor({})[] copies, int[] kinds, Tensor[] masks, int[] groups, int[] numbers, Tensor? bits, Tensor? cut, "
    "Tensor factors, Tensor scalars, str mode, bool zero_grad, bool stochastic, int seed) -> ()"
)


def _fake(*arguments: object) -> None: ...


define(
    "masked_adamw_",
    "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] exp_avgs, Tensor(d!)[] exp_avg_sqs, "
    + _SHARED.format("e!"),
    _fake,
)
define(
    "masked_sgd_",
    "(Tensor(a!)[] params, Tensor(b!)[] grads, Tensor(c!)[] buffers, " + _SHARED.format("d!"),
    _fake,
)
