"""Which weight blocks each row meets: the router's choice, the order that groups rows, and the balance of loads."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from longspan.ops._rows import readable
from longspan.ops.grouped import MAX_BLOCKS, BlockSets
from longspan.ops.norm import Norm, apply_norm


@dataclass(frozen=True)
class RoutePlan:
    """Rows in the order of their sets of blocks; nothing of it waits for a device.

    sets: of the rows in that order. perm: int64 [n], the rows in that order, stable; inverse: int64 [n], where each row
    went. counts: int64 [G], rows that each block has.
    """

    sets: BlockSets
    perm: Tensor
    inverse: Tensor
    counts: Tensor


def route_topk(logits: Tensor, active: int) -> tuple[Tensor, Tensor]:
    """The `active` blocks with the highest logits of each row, and their gates 2 sigmoid(logit).

    logits: [n,G], floating point. Returns act int64 [n,active], increasing, ties to the lower block, and gates
    [n,active] in the order of act, about 1 at a logit of 0. Differentiable in logits through the gates of the chosen:
    the others' gradient is exactly 0. Raises ValueError for a number of active blocks that is not 1 to G.
    Source: SPT (arXiv 2312.10365, prototype).
    """
    _check_logits("route_topk", logits)
    if not 1 <= active <= logits.shape[1]:
        raise ValueError(f"route_topk: active is {active}; allowed: 1 to {logits.shape[1]} blocks")
    best = torch.sort(logits.detach(), dim=1, descending=True, stable=True).indices[:, :active]
    act = best.sort(1).values
    return act, 2 * torch.sigmoid(logits.gather(1, act))


def route_logits(x: Tensor, weight: Tensor, bias: Tensor, norm: Norm | None = None) -> Tensor:
    """A router's logits [n,G] = norm(x) weight^T + bias of rows x [n,C], in the dtype of weight [G,C] and bias [G].

    Differentiable, once, in x, weight, bias and the norm's vectors. Saved: x by reference; the norm is made again.
    Raises ValueError for what does not fit.
    """
    columns = x.shape[-1] if x.dim() else 0
    for label, tensor, shape in (
        ("weight", weight, (weight.shape[:1].numel(), columns)),
        ("bias", bias, weight.shape[:1]),
    ):
        if tensor.shape != shape or tensor.dtype != weight.dtype or not tensor.dtype.is_floating_point:
            raise ValueError(
                f"route_logits: {label} is {tensor.dtype} {tuple(tensor.shape)}; it must be floating point "
                f"{tuple(shape)}, weight and bias of one dtype"
            )
        if tensor.device != x.device:
            raise ValueError(f"route_logits: {label} is on {tensor.device} and x on {x.device}; they must be together")
    if not x.dtype.is_floating_point:
        raise ValueError(f"route_logits: x is {x.dtype}; it must be floating point")
    vectors = (None, None) if norm is None else (norm.weight, norm.bias)
    logits: Tensor = _Logits.apply(
        None if norm is None else replace(norm, weight=None, bias=None), x, weight, bias, *vectors
    )
    return logits


class _Logits(Function):
    @staticmethod
    def forward(
        ctx: Any, norm: Norm | None, x: Tensor, weight: Tensor, bias: Tensor, *vectors: Tensor | None
    ) -> Tensor:
        ctx.norm = norm
        ctx.save_for_backward(x, weight, bias, *vectors)
        return _logits(norm, x, weight, bias, *vectors)

    @staticmethod
    def backward(ctx: Any, dlogits: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("route_logits is differentiable once; its gradient has no graph (create_graph=True)")
        wanted = ctx.needs_input_grad[1:]
        leaves = [
            None if t is None else t.detach().requires_grad_(w) for t, w in zip(ctx.saved_tensors, wanted, strict=True)
        ]
        with torch.enable_grad():
            logits = _logits(ctx.norm, *leaves)
        found = iter(torch.autograd.grad(logits, [t for t in leaves if t is not None and t.requires_grad], dlogits))
        return None, *(next(found) if want else None for want in wanted)


def _logits(norm: Norm | None, x: Any, weight: Any, bias: Any, *vectors: Tensor | None) -> Tensor:
    whole = None if norm is None else replace(norm, weight=vectors[0], bias=vectors[1])
    return torch.nn.functional.linear(apply_norm(whole, x).to(weight.dtype), weight, bias)


@torch.no_grad()
def route_plan(act: Tensor, blocks: int) -> RoutePlan:
    """Groups rows by their set of blocks, in a stable order.

    act: int64 [n,active], increasing, of 1 to 8 blocks. Rows of one set are neighbours, so that each of its products is
    one, and a row's result is written once. Raises ValueError for what does not fit.
    """
    if act.dim() != 2 or act.dtype != torch.int64 or not 1 <= act.shape[1] <= blocks <= MAX_BLOCKS:
        raise ValueError(
            f"route_plan: act is {act.dtype} {tuple(act.shape)} of {blocks} blocks; it must be int64 [n, active] with "
            f"active at most blocks, and those at most {MAX_BLOCKS}"
        )
    _check_act("route_plan", act, blocks)
    active = act.shape[1]
    numbers = torch.zeros(2**blocks, dtype=torch.int64)
    for place, members in enumerate(itertools.combinations(range(blocks), active)):
        numbers[sum(1 << block for block in members)] = place
    count = math.comb(blocks, active)
    number = numbers.to(act.device)[(1 << act).sum(1)]
    ordered, perm = torch.sort(number, stable=True)
    borders = torch.arange(count + 1, device=act.device)
    offsets = torch.searchsorted(ordered, borders).int()
    inverse = torch.empty_like(perm).scatter_(0, perm, torch.arange(len(perm), device=act.device))
    counts = (act[..., None] == torch.arange(blocks, device=act.device)).sum((0, 1))
    return RoutePlan(BlockSets(offsets, blocks, active), perm, inverse, counts)


def balance_loss(logits: Tensor, act: Tensor) -> Tensor:
    """G sum_i f_i P_i: 1 for even use, G / active if all rows meet the same blocks.

    f_i: share of the chosen that are block i, a constant; P_i: mean over rows of sigmoid(logit_i) / sum_j
    sigmoid(logit_j). logits [n,G], act int64 [n,active]. Differentiable in logits; 0 without rows. Raises ValueError
    for what does not fit.
    """
    _check_logits("balance_loss", logits)
    n, blocks = logits.shape
    if act.dim() != 2 or act.dtype != torch.int64 or act.shape[0] != n or not 1 <= act.shape[1] <= blocks:
        raise ValueError(
            f"balance_loss: act is {act.dtype} {tuple(act.shape)}; it must be int64 [{n}, 1 to {blocks}], as logits"
        )
    if act.device != logits.device:
        raise ValueError(
            f"balance_loss: act is on {act.device} and logits on {logits.device}; they must be on one device"
        )
    _check_act("balance_loss", act, blocks)
    if n == 0:
        return logits.sum()
    chosen = torch.zeros_like(logits).scatter_(1, act, 1.0)
    share = chosen.sum(0) / act.numel()
    mass = torch.sigmoid(logits)
    return blocks * (share * (mass / mass.sum(1, keepdim=True)).mean(0)).sum()


def _check_act(name: str, act: Tensor, blocks: int) -> None:
    """Names blocks that do not increase in a row; where values can be read."""
    if not readable(act) or act.shape[0] == 0:
        return
    if not bool((act[:, 1:] > act[:, :-1]).all()) or int(act.min()) < 0 or int(act.max()) >= blocks:
        raise ValueError(f"{name}: the blocks of a row of act must increase from 0 to {blocks - 1} at most")


def _check_logits(name: str, logits: Tensor) -> None:
    if logits.dim() != 2 or not logits.dtype.is_floating_point or not 1 <= logits.shape[1] <= MAX_BLOCKS:
        raise ValueError(
            f"{name}: logits are {logits.dtype} {tuple(logits.shape)}; they must be floating point "
            f"[n, 1 to {MAX_BLOCKS}]"
        )
