"""Drawings of ops over lists of tensors: magnitudes, noise, optimiser steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.ops.reference import magnitude as magnitudes
from longspan.ops.reference import perturb as perturbs
from longspan.ops.reference import update as updates
from tests.fuzz.calls import Call, drawing
from tests.fuzz.draw import BF16, F32, Draw

NAMES = ("tensors", "groups", "wanted", "targets", "params", "masked", "perturb", "magnitude", "squared", "es_update")


def tensors_of(draw: Draw, least: int = 1, *dtypes: torch.dtype) -> list[Tensor]:
    """Some of any shape, one of which may be empty."""
    shapes = [draw.one((5,), (3, 4), (), (1, 70), *(() if least else ((0, 3),))) for _ in range(draw.number(1, 3))]
    return [draw.floats(*sizes, dtype=draw.one(*(dtypes or (F32, BF16)))) for sizes in shapes]


@drawing("ops.kth_magnitude", "ops.Thresholds")
def kth_magnitude(draw: Draw) -> Call:
    tensors = tensors_of(draw)
    total = sum(x.numel() for x in tensors)
    given = {"tensors": tensors, "wanted": [draw.number(1, total)], "exact": draw.flag()}

    def run(tensors: list[Tensor], wanted: list[int], exact: bool) -> Any:
        found = ops.kth_magnitude(tensors, wanted, groups=[0] * len(tensors), exact=exact)
        return found.values, found.kept

    def reference(tensors: list[Tensor], wanted: list[int], exact: bool) -> Any:
        assert len(wanted) == 1 and tensors and 1 <= wanted[0] <= sum(x.numel() for x in tensors)  # noqa: PT018
        threshold, kept = magnitudes.kth_magnitude(tensors, wanted[0], exact=exact)
        return torch.tensor([threshold]), kept.sum()[None]

    return Call(run, given, reference, names=NAMES)


@drawing("ops.magnitude_histogram", "ops.squared_norms")
def squared_norms(draw: Draw) -> Call:
    tensors = tensors_of(draw, 0)
    given = {"tensors": tensors, "groups": [draw.number(0, 2) for _ in tensors]}

    def exact(tensors: list[Tensor], groups: list[int]) -> Tensor:
        groups = list(range(len(tensors))) if groups is None else groups
        assert len(groups) == len(tensors) > 0 and 0 <= min(groups) <= max(groups) < 2**16  # noqa: PT018
        pairs = list(zip(tensors, groups, strict=True))
        each = [sum((x.double() ** 2).sum() for x, g in pairs if g == group) for group in range(max(groups) + 1)]
        return torch.stack([torch.as_tensor(x, dtype=torch.float64) for x in each])

    if draw.flag():
        return Call(lambda **rest: ops.magnitude_histogram(**rest)[1], given, exact, names=NAMES, sized=("groups",))
    return Call(ops.squared_norms, given, exact, names=NAMES, sized=("groups",))


def noise_arguments(draw: Draw) -> dict[str, Any]:
    return {
        "stream": draw.one(0, 1, 2**32 - 1),
        "distribution": draw.one("gaussian", "rademacher"),
    }


@drawing("ops.perturb_noise")
def perturb_noise(draw: Draw) -> Call:
    given = {
        "size": draw.size(),
        "seed": draw.one(0, 7, -(2**63), 2**63 - 1),
        "step": draw.one(0, 2**32 - 1),
        "tensor_id": draw.one(0, 5),
        "offset": draw.one(0, 3, 2**40),
        **noise_arguments(draw),
    }

    def exact(size: int, seed: int, step: int, offset: int, tensor_id: int, stream: int, distribution: str) -> Tensor:
        assert -(2**63) <= seed < 2**63 and 0 <= step < 2**32 and 0 <= tensor_id < 2**32  # noqa: PT018
        assert 0 <= offset < 2**62 and 0 <= stream < 2**32  # noqa: PT018
        named = {"tensor_id": tensor_id, "stream": stream, "offset": offset, "distribution": distribution}
        return perturbs.noise(size, seed, step, **named).float()

    names = (*NAMES, "offsets", "tensor_ids", "seed", "step")
    return Call(ops.perturb_noise, given, exact, sized=("size",), names=names)


@drawing("ops.perturb_", "ops.es_update_")
def perturb(draw: Draw) -> Call:
    given: dict[str, Any] = {"targets": tensors_of(draw, 0), "seed": draw.one(1, -5), **noise_arguments(draw)}
    if draw.flag():
        given["scale"] = draw.one(1.0, 0.0, -0.5)

        def run(targets: list[Tensor], scale: float, seed: int, **rest: Any) -> list[Tensor]:
            ops.perturb_(targets, scale, seed, **rest)
            return targets

        def exact(targets: list[Tensor], scale: float, seed: int, **rest: Any) -> list[Tensor]:
            noises = [perturbs.noise(x.numel(), seed, tensor_id=i, **rest) for i, x in enumerate(targets)]
            return [x + scale * z.reshape(x.shape).to(x.dtype) for x, z in zip(targets, noises, strict=True)]

        return Call(run, given, exact, names=NAMES)
    given |= {"coefficients": [1.0, -0.5], "alpha": draw.one(1.0, 0.1), "decay": draw.one(0.0, 0.5)}

    def step(targets: list[Tensor], coefficients: list[float], seed: int, **rest: Any) -> list[Tensor]:
        ops.es_update_(targets, coefficients, [seed, seed + 1], **rest)
        return targets

    return Call(step, given, names=NAMES)


@drawing("ops.masked_adamw_", "ops.masked_sgd_", "ops.UpdateMask")
def masked(draw: Draw) -> Call:
    params = tensors_of(draw, 0)
    like = lambda scale: [draw.floats(*p.shape, scale=scale) for p in params]  # noqa: E731
    kinds = [draw.one("all", "none", "rows", "columns", "bits") for _ in params]
    masks = []
    for p, kind in zip(params, kinds, strict=True):
        columns = p.shape[-1] if p.dim() else 1
        size = {"bits": -(-p.numel() // 8), "rows": p.numel() // max(1, columns), "columns": columns}.get(kind)
        masks.append(None if size is None else draw.integers(size, below=2, dtype=torch.uint8))
    given: dict[str, Any] = {"params": params, "grads": like(1.0), "kinds": kinds, "masks": masks}
    given |= {"mode": draw.one("grad", "update", "freeze"), "zero_grad": draw.flag(), "lr": 0.1}
    adamw = draw.flag()
    given |= {"exp_avgs": like(0.1), "exp_avg_sqs": [x.abs() for x in like(0.1)]} if adamw else {"buffers": like(0.1)}

    def run(
        params: list[Tensor], grads: list[Tensor], kinds: list[str], masks: list[Any], lr: float, **rest: Any
    ) -> Any:
        of = [ops.UpdateMask(kind, mask) for kind, mask in zip(kinds, masks, strict=True)]
        state = [rest.pop(n) for n in (("exp_avgs", "exp_avg_sqs") if adamw else ("buffers",))]
        if adamw:
            ops.masked_adamw_(params, grads, *state, ops.adamw_scalars(2, lr=lr), masks=of, **rest)
        else:
            ops.masked_sgd_(params, grads, *state, ops.sgd_scalars(lr=lr, momentum=0.5), masks=of, **rest)
        return params, state

    def exact(
        params: list[Tensor],
        grads: Any,
        kinds: list[str],
        masks: Any,
        mode: str,
        zero_grad: bool,
        lr: float,
        **state: Any,
    ) -> Any:
        news: list[Any] = []
        for i, (p, kind, mask) in enumerate(zip(params, kinds, masks, strict=True)):
            columns = p.shape[-1] if p.dim() else 1
            flat = torch.full((p.numel(),), kind != "none")
            number = torch.arange(p.numel())
            if kind == "bits":
                flat = (mask[number // 8] >> (number % 8)) & 1 == 1
            elif kind in ("rows", "columns"):
                flat = mask[number // columns if kind == "rows" else number % columns] != 0
            kept, wide = flat.reshape(p.shape), torch.float64 if p.dtype == torch.float64 else F32
            mine = [x[i].to(wide) for x in state.values()]
            options = {"mode": mode, "lr": lr}
            if adamw:
                news.append(updates.masked_adamw(p.to(wide), grads[i].to(wide), *mine, kept, step=2, **options))
            else:
                news.append(updates.masked_sgd(p.to(wide), grads[i].to(wide), *mine, kept, momentum=0.5, **options))
        return [x[0].to(p.dtype) for x, p in zip(news, params, strict=True)], [
            [x[j] for x in news] for j in range(1, 3 if adamw else 2)
        ]

    # A list that has another length is refused by the drawing itself, as it makes the masks.
    return Call(run, given, exact, free=("buffers",), names=(*NAMES, "grads", "exp_avg", "mask", "zip", "lr"))


@drawing("ops.adamw_scalars", "ops.sgd_scalars")
def scalars(draw: Draw) -> Call:
    given: dict[str, Any] = {"lr": draw.one(0.1, 0.0), "weight_decay": draw.one(0.0, 0.1)}
    if draw.flag():
        return Call(ops.sgd_scalars, {**given, "momentum": draw.one(0.0, 0.9)}, names=("sgd",))
    given |= {"step": draw.number(1, 9), "betas": (0.9, 0.999), "eps": 1e-8}
    return Call(ops.adamw_scalars, given, names=("adamw",))
