"""The feed-forward branch of a decoder layer whose blocks a router chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.ffn import RoutedFeedForward
from longspan.nn.router import Router
from longspan.patch.layers import parts
from longspan.patch.layers.families import LayerFamily
from longspan.patch.layers.offload import checkpointed
from longspan.patch.routed.calibrate import contribution_norms, some_rows
from longspan.patch.steps import Steps

if TYPE_CHECKING:
    from longspan.patch.layers.layer import Layer

ROUTER = "longspan_router"  # of the submodule of a decoder layer


@dataclass
class LayerRoute:
    """The routed feed-forward of one layer. evaluates: whether evaluation is routed as well."""

    config: RoutedFeedForward
    path: str
    steps: Steps
    evaluates: bool = False
    watch: Callable[[ops.RoutePlan], None] | None = None  # is given every plan

    def active(self, training: bool) -> int:
        """How many blocks each token meets now."""
        return self.config.active_at(self.steps.step) if training else self.config.active

    def run(self, call: Layer, rows: Tensor, residual: Tensor) -> Tensor:
        """residual + the routed branch of rows [B*T,C], for a call of the layer.

        Raises ValueError naming the layer where its branch is not made of linear maps whose blocks can be told apart.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError("ffn routed needs eager mode; use ffn.train: dense under torch.compile")
        router: Router = getattr(call.layer, ROUTER)
        if self.config.calibrate and not router.fitted:
            _calibrate(call, self, router, rows)
        if "mlp" not in call.recompute:
            return _run(call, self, router, rows, residual)
        again = replace(call, recompute="none", shelf=None)
        return checkpointed(lambda x, added: _run(again, self, router, x, added), rows, residual, shelf=call.shelf)


@dataclass(frozen=True)
class Branch:
    """What the branch is made of: projections up and down, the norm before them, the activation."""

    up: list[ops.Projection]
    down: ops.Projection
    norm: ops.Norm | None
    activation: str


def _run(call: Layer, route: LayerRoute, router: Router, rows: Tensor, residual: Tensor) -> Tensor:
    branch, rows = _entered(call, route, rows)
    config, training = route.config, call.layer.training
    logits = ops.route_logits(rows, router.weight, router.bias, branch.norm)
    act, gates = ops.route_topk(logits, route.active(training))
    plan = ops.route_plan(act, config.blocks)
    if route.watch is not None:
        route.watch(plan)
    family = call.state.family
    plain = family.post2 is None and not call.drops(family.drop2) and rows.dtype == residual.dtype
    y = ops.routed_ffn(
        rows,
        branch.up,
        branch.down,
        plan,
        None if config.gate == "none" else gates,
        branch.norm,
        activation=branch.activation,
        residual=residual if plain else None,
        mode=config.gate,
    )
    if not plain:
        y = call.join(y, residual, family.post2, family.drop2)
    return _with_balance(y, route, logits, act, plan) if training and torch.is_grad_enabled() else y


def _with_balance(y: Tensor, route: LayerRoute, logits: Tensor, act: Tensor, plan: ops.RoutePlan) -> Tensor:
    losses = route.steps.losses
    counts = plan.counts.double()
    losses.note("block_load", route.path, counts.max() / counts.mean().clamp(min=1))
    if not route.config.balance:
        return y
    balance = ops.balance_loss(logits, act)
    losses.note("balance_loss", route.path, balance)
    return losses.join(y, balance, route.config.balance)


def _calibrate(call: Layer, route: LayerRoute, router: Router, rows: Tensor) -> None:
    with torch.no_grad():
        branch, rows = _entered(call, route, some_rows(rows))
        z = ops.apply_norm(branch.norm, rows)
        norms = contribution_norms(z, branch.up, branch.down, branch.activation, route.config.blocks)
        router.fit(z, norms)


def _entered(call: Layer, route: LayerRoute, rows: Tensor) -> tuple[Branch, Tensor]:
    """The branch, and what goes into it: rows, normed already where the norm cannot be part of the op."""
    up, down = projections(call.layer, call.state.family, route.path)
    norm = call.norm_of(call.state.family.norm2)
    dtype = parts.autocast_dtype(rows)
    if norm is None or dtype is not None:
        rows, norm = call.norm(call.state.family.norm2, rows), None
    if dtype is not None:
        rows, up, down = rows.to(dtype), [parts.cast(p, dtype) for p in up], parts.cast(down, dtype)
    assert call.state.activation is not None
    return Branch(up, down, norm, call.state.activation), rows


def projections(layer: nn.Module, family: LayerFamily, path: str) -> tuple[list[ops.Projection], ops.Projection]:
    """The linear maps up (gate and up apart) and down. Raises ValueError naming what is in the way."""
    found = []
    for name in (*family.up, family.down):
        module = parts.attribute(layer, name)
        entry = parts.linear_of(module, conv1d=True)
        if entry is None:
            reason = parts.why_not_lora(module, conv1d=True)
            raise ValueError(f"{path}: ffn routed needs the blocks of {name}, and {reason}; use ffn.train: dense")
        if entry[1] > 0:
            raise ValueError(
                f"{path}: ffn routed has no dropout inside its blocks, and the adapter of {name} has {entry[1]:g}; set "
                "adapter.dropout to 0"
            )
        found.append(entry[0])
    *up, down = found
    if family.gated and len(up) == 1:
        up = parts.halves(up[0])
    return up, down
