"""A feed-forward layer of which each row meets some blocks of hidden units, with adapters inside the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from longspan.ops._define import op
from longspan.ops._feed_forward import check_branch, hidden_of
from longspan.ops._rows import as_rows
from longspan.ops.grouped import BlockSets, grouped_expand, grouped_reduce, grouped_weight
from longspan.ops.lora import Projection
from longspan.ops.norm import Norm, apply_norm
from longspan.ops.route import RoutePlan

GATES = ("out", "none", "double")


def routed_ffn(
    x: Tensor,
    up: Sequence[Projection],
    down: Projection,
    plan: RoutePlan,
    gates: Tensor | None = None,
    norm: Norm | None = None,
    *,
    activation: str,
    residual: Tensor | None = None,
    mode: str = "out",
) -> Tensor:
    """residual + sum over a row's blocks i of c_i FFN_i(norm(x)) + bias of down.

    FFN_i is the feed-forward of the i-th of G equal runs of hidden units: rows of `up`, columns of `down`, with the
    parts of their adapters (lora_b's rows, lora_a's columns). x: [..., C]; up: gate and up [F,C] each, or one that goes
    through the activation alone; down: [C,F]; plan: of the rows (`route_plan`); gates c: [n,active] of `route_topk`, or
    None for 1. mode "out": as above, so that adapters can be merged; "none": c is 1; "double": c scales the weights'
    products before and after the activation but not the adapters' (SPT's prototype).

    Differentiable, once, in x, residual, gates and all tensors of the projections and the norm. Saved (but for
    "double"): x by reference, gate and up of the active blocks, R numbers a row and adapter, the plan. The hidden
    activation, normed rows and their permutation are made again. Only active / G of the products are formed.

    Raises ValueError for what does not fit. Source: SPT (arXiv 2312.10365); mode out and the plan are ours.
    """
    check_branch("routed_ffn", up, down, False)
    if mode not in GATES:
        raise ValueError(f"routed_ffn: mode is {mode!r}; allowed: {', '.join(GATES)}")
    if any(p.residual is not None for p in (*up, down)):
        raise ValueError("routed_ffn: a projection has a residual; give it to routed_ffn as residual")
    for p in (*up, down):
        _check_map(p, x)
    blocks = plan.sets.blocks
    for p in up:
        if p.weight.shape[0] % blocks:
            raise ValueError(f"routed_ffn: {p.weight.shape[0]} hidden units do not divide into {blocks} blocks")
    rows = as_rows(x)
    if rows.shape[0] != plan.perm.shape[0]:
        raise ValueError(f"routed_ffn: the plan is of {plan.perm.shape[0]} rows; x has {rows.shape[0]}")
    if mode == "none":
        gates = None
    if gates is not None and gates.shape != (rows.shape[0], plan.sets.active):
        raise ValueError(
            f"routed_ffn: gates have shape {tuple(gates.shape)}; they must be {(rows.shape[0], plan.sets.active)}"
        )
    if mode == "double" and gates is not None:
        y = _double(rows, up, down, plan, gates, norm, activation)
    else:
        branch = _Branch.of(up, down, norm, activation, plan)
        y = _Routed.apply(branch, rows, gates, *branch.tensors)
    if residual is not None:
        y = as_rows(residual) + y
    return y.reshape(*x.shape[:-1], y.shape[-1])


def _check_map(p: Projection, x: Tensor) -> None:
    """Raises ValueError for a projection whose parts do not fit each other."""
    if (p.lora_a is None) != (p.lora_b is None):
        raise ValueError("routed_ffn: lora_a and lora_b go together; give both or none")
    if p.weight.dim() != 2 or (p.lora_a is not None and p.lora_a.dim() != 2):
        raise ValueError(f"routed_ffn: weight has shape {tuple(p.weight.shape)}; it and lora_a must be matrices")
    rows, columns = p.weight.shape
    rank = 0 if p.lora_a is None else p.lora_a.shape[0]
    for label, tensor, shape in (
        ("weight", p.weight, (rows, columns)),
        ("bias", p.bias, (rows,)),
        ("lora_a", p.lora_a, (rank, columns)),
        ("lora_b", p.lora_b, (rows, rank)),
    ):
        if tensor is None:
            continue
        adapter = label.startswith("lora") and tensor.dtype in (torch.float32, torch.float64)
        if tensor.shape != shape or tensor.device != x.device or (tensor.dtype != x.dtype and not adapter):
            raise ValueError(
                f"routed_ffn: {label} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; it must be {x.dtype} "
                f"{shape} on {x.device}"
            )


def _wide(x: Tensor) -> Tensor:
    """In the type of sums."""
    return x if x.dtype == torch.float64 else x.float()


def _scaled(values: Tensor, gates: Tensor | None) -> Tensor:
    """Slots' columns [n, active F] times their gates [n, active]."""
    if gates is None:
        return values
    return (values.unflatten(1, (gates.shape[1], -1)) * gates[..., None].to(values.dtype)).flatten(1)


def _scale_(values: Tensor, gates: Tensor | None) -> Tensor:
    """The same in place, of contiguous rows."""
    if gates is not None:
        values.unflatten(1, (gates.shape[1], -1)).mul_(gates[..., None].to(values.dtype))
    return values


def _products(x: Tensor, y: Tensor, slots: int) -> Tensor:
    """The slots' products of two rows [n, active F], in the type of sums: [n, active]."""
    if x.dtype in (torch.bfloat16, torch.float16):
        return _wide(x * y).unflatten(1, (slots, -1)).sum(-1)
    n, width = len(x), x.shape[1] // slots  # as products of matrices, which need no copy of x * y
    return (x.reshape(n * slots, 1, width) @ y.reshape(n * slots, width, 1)).view(n, slots)


Tail = tuple[Tensor, Tensor] | None


def _expand(
    x: Tensor, weight: Tensor, sets: BlockSets, bias: Tensor | None, tail: Tail = None, by_rows: bool = True
) -> Tensor:
    """`grouped_expand` of a weight that may be stored the other way round (GPT-2's), read where it lies."""
    weight, by_rows, tail = _stored(weight, by_rows, tail)
    return grouped_expand(x, weight, sets, bias, by_rows=by_rows, tail=tail)


def _reduce(
    x: Tensor, weight: Tensor, sets: BlockSets, bias: Tensor | None, tail: Tail = None, by_rows: bool = False
) -> Tensor:
    """`grouped_reduce`, likewise."""
    weight, by_rows, tail = _stored(weight, by_rows, tail)
    return grouped_reduce(x, weight, sets, bias, by_rows=by_rows, tail=tail)


def _stored(weight: Tensor, by_rows: bool, tail: Tail) -> tuple[Tensor, bool, Tail]:
    if weight.stride(-1) == 1 or weight.stride(0) != 1:
        return weight, by_rows, tail
    return weight.mT, not by_rows, None if tail is None else (tail[0], tail[1].mT.contiguous())


@dataclass(frozen=True)
class _Branch:
    """The layer's structure; its tensors stand in a flat list, None where there is none."""

    scalings: tuple[float, ...]
    norm: Norm | None
    activation: str
    plan: RoutePlan
    tensors: tuple[Tensor | None, ...]

    @classmethod
    def of(
        cls, up: Sequence[Projection], down: Projection, norm: Norm | None, activation: str, plan: RoutePlan
    ) -> _Branch:
        every = (*up, down)
        tensors = tuple(t for p in every for t in (p.weight, p.bias, p.lora_a, p.lora_b))
        vectors = (None, None) if norm is None else (norm.weight, norm.bias)
        return cls(tuple(p.scaling for p in every), norm, activation, plan, (*tensors, *vectors))

    @property
    def sets(self) -> BlockSets:
        """Of the rows in the plan's order."""
        return self.plan.sets

    def projections(self, tensors: Sequence[Tensor | None]) -> list[Projection]:
        """Those of up and the one down, of the tensors that stand for this branch's own."""
        found = []
        for i, scaling in enumerate(self.scalings):
            weight, bias, lora_a, lora_b = tensors[4 * i : 4 * i + 4]
            assert weight is not None
            found.append(Projection(weight, bias, lora_a, lora_b, scaling))
        return found

    def entered(self, x: Tensor, tensors: Sequence[Tensor | None]) -> Tensor:
        """Normed rows in the plan's order."""
        norm = None if self.norm is None else replace(self.norm, weight=tensors[-2], bias=tensors[-1])
        return apply_norm(norm, x).index_select(0, self.plan.perm)


class _Routed(Function):
    @staticmethod
    def forward(ctx: Any, branch: _Branch, x: Tensor, gates: Tensor | None, *tensors: Tensor | None) -> Tensor:
        *up, down = branch.projections(tensors)
        sets, plan = branch.sets, branch.plan
        z = branch.entered(x, tensors)
        wide, thin = [], []
        for p in up:
            tail = None
            if p.lora_a is not None and p.lora_b is not None:
                s = _wide(z @ p.lora_a.to(z.dtype).mT)
                thin.append(s)
                tail = (s * p.scaling, _wide(p.lora_b))
            wide.append(_expand(z, p.weight, sets, p.bias, tail))
        del z
        c = None if gates is None else gates.index_select(0, plan.perm)
        hidden = _scale_(hidden_of(wide, branch.activation, False), c)
        tail = None
        if down.lora_a is not None and down.lora_b is not None:
            s = _wide(grouped_reduce(hidden, down.lora_a.to(hidden.dtype), sets))
            thin.append(s)
            tail = (s * down.scaling, _wide(down.lora_b))
        y = _reduce(hidden, down.weight, sets, down.bias, tail)
        ctx.branch, ctx.counts = branch, (len(wide), len(thin))
        ctx.save_for_backward(x, gates, *wide, *thin, *tensors)
        return y.index_select(0, plan.inverse)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("routed_ffn is differentiable once; its gradient has no graph (create_graph=True)")
        branch: _Branch = ctx.branch
        x, gates, *rest = ctx.saved_tensors
        wides, thins = ctx.counts
        wide, thin, tensors = rest[:wides], rest[wides : wides + thins], rest[wides + thins :]
        gradient = _Gradient(branch, list(branch.projections(tensors)), ctx.needs_input_grad[3:])
        c = None if gates is None else gates.index_select(0, branch.plan.perm)
        dy = dy.index_select(0, branch.plan.perm)
        hidden, ds = hidden_of(wide, branch.activation, False), gradient.thin(dy)
        dhidden = gradient.hidden(dy, ds)
        dgates = None
        if c is not None and ctx.needs_input_grad[2]:
            products = _products(hidden, dhidden, c.shape[1])
            dgates = products.index_select(0, branch.plan.inverse).to(c.dtype)
        gradient.down(dy, _scale_(hidden, c), thin, ds)
        del hidden
        _scale_(dhidden, c)
        gated = len(wide) == 2
        dwide = op("glu_bwd")(dhidden, wide[0], wide[1] if gated else None, branch.activation, False)
        del dhidden
        dx, dnorm = gradient.up(dwide[: len(wide)], x, tensors, thin, ctx.needs_input_grad[1])
        return None, dx, dgates, *gradient.tensors, *dnorm


class _Gradient:
    """The gradients of one call, filled from the result back to the input."""

    def __init__(self, branch: _Branch, projections: list[Projection], wanted: Sequence[bool]) -> None:
        self.sets, self.branch, self.projections, self.wanted = branch.sets, branch, projections, wanted
        self.tensors: list[Tensor | None] = [None] * (4 * len(projections))

    def _wants(self, projection: int, tensor: int) -> bool:
        return self.wanted[4 * projection + tensor]

    def _put(self, projection: int, tensor: int, value: Tensor) -> None:
        own = self.branch.tensors[4 * projection + tensor]
        assert own is not None
        self.tensors[4 * projection + tensor] = value.to(own.dtype)

    def thin(self, dy: Tensor) -> Tensor | None:
        """The gradient of the last projection's thin rows."""
        p = self.projections[-1]
        return None if p.lora_b is None else _wide(dy @ p.lora_b.to(dy.dtype)) * p.scaling

    def hidden(self, dy: Tensor, ds: Tensor | None) -> Tensor:
        """The gradient of the hidden rows times their gates."""
        p = self.projections[-1]
        tail = None if ds is None or p.lora_a is None else (ds, _wide(p.lora_a))
        return _expand(dy, p.weight, self.sets, None, tail, by_rows=False)

    def down(self, dy: Tensor, hidden: Tensor, thin: list[Tensor], ds: Tensor | None) -> None:
        """Those of the last projection, from hidden rows times their gates."""
        last, p = len(self.projections) - 1, self.projections[-1]
        if ds is not None:
            s = thin.pop()
            if self._wants(last, 3):
                self._put(last, 3, _wide(dy).mT @ s * p.scaling)
            if self._wants(last, 2):
                self._put(last, 2, grouped_weight(hidden, ds.to(hidden.dtype), self.sets, by_rows=False, wide=True))
        if self._wants(last, 0):
            self._put(last, 0, grouped_weight(hidden, dy, self.sets, by_rows=False))
        if self._wants(last, 1):
            self._put(last, 1, dy.sum(0))

    def up(
        self, dwide: Sequence[Tensor], x: Tensor, tensors: Sequence[Tensor | None], thin: list[Tensor], dx_wanted: bool
    ) -> tuple[Tensor | None, tuple[Tensor | None, Tensor | None]]:
        """The gradients of x and of the norm's vectors."""
        sets, plan = self.sets, self.branch.plan
        count = len(dwide)
        norm_wanted = any(self.wanted[-2:])
        inner = any(self._wants(i, j) for i in range(count) for j in (0, 2))
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(dx_wanted)
            vectors = [
                None if t is None else t.detach().requires_grad_(w)
                for t, w in zip(tensors[-2:], self.wanted[-2:], strict=True)
            ]
            norm = self.branch.norm
            normed = apply_norm(None if norm is None else replace(norm, weight=vectors[0], bias=vectors[1]), leaf)
        z = normed.detach().index_select(0, plan.perm) if inner else None
        dz: Tensor | None = None
        thins = iter(thin)  # of the projections that have an adapter
        for i, (du, p) in enumerate(zip(dwide, self.projections[:count], strict=True)):
            tail = None
            if p.lora_a is not None and p.lora_b is not None:
                s = next(thins)
                ds = _wide(grouped_reduce(du, p.lora_b.to(du.dtype), sets, by_rows=True)) * p.scaling
                if self._wants(i, 3):
                    self._put(i, 3, grouped_weight(du, s.to(du.dtype), sets, wide=True) * p.scaling)
                if self._wants(i, 2):
                    assert z is not None
                    self._put(i, 2, ds.to(z.dtype).mT @ z)
                tail = (ds, _wide(p.lora_a))
            if self._wants(i, 0):
                assert z is not None
                self._put(i, 0, grouped_weight(du, z, sets))
            if self._wants(i, 1):
                self._put(i, 1, grouped_weight(du, du.new_ones((len(du), 1)), sets, wide=True).flatten())
            if dx_wanted or norm_wanted:
                part = _reduce(du, p.weight, sets, None, tail, by_rows=True)
                dz = part if dz is None else dz.add_(part)
        if dz is None:
            return None, (None, None)
        wanted = [t for t in (leaf, *vectors) if t is not None and t.requires_grad]
        found = dict(
            zip(map(id, wanted), torch.autograd.grad(normed, wanted, dz.index_select(0, plan.inverse)), strict=True)
        )
        dnorm = tuple(None if t is None else found.get(id(t)) for t in vectors)
        return found.get(id(leaf)), (dnorm[0], dnorm[1])


def _double(
    rows: Tensor,
    up: Sequence[Projection],
    down: Projection,
    plan: RoutePlan,
    gates: Tensor,
    norm: Norm | None,
    activation: str,
) -> Tensor:
    """Gates on the weights' products before and after the activation, none on the adapters'; by autograd."""
    sets = plan.sets
    z = apply_norm(norm, rows).index_select(0, plan.perm)
    c = gates.index_select(0, plan.perm)
    wide = []
    for p in up:
        u = _scaled(_expand(z, p.weight, sets, p.bias), c)
        if p.lora_a is not None and p.lora_b is not None:
            u = u + grouped_expand((z @ p.lora_a.to(z.dtype).mT) * p.scaling, p.lora_b.to(z.dtype), sets)
        wide.append(u)
    hidden = hidden_of(wide, activation, False)
    y = _reduce(_scaled(hidden, c), down.weight, sets, down.bias)
    if down.lora_a is not None and down.lora_b is not None:
        s = grouped_reduce(hidden, down.lora_a.to(hidden.dtype), sets) * down.scaling
        y = y + s @ down.lora_b.to(hidden.dtype).mT
    return y.index_select(0, plan.inverse)
