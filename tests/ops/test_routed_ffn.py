"""Routing and the routed feed-forward: what the dense layer gives with hidden units taken out, and laws."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from longspan.memory import measure
from longspan.ops import Norm, Projection, RoutePlan, balance_loss, route_logits, route_plan, route_topk, routed_ffn
from longspan.ops.reference import norm as reference
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "relu": functional.relu,
}

# ---- the router ------------------------------------------------------------------------------------------------------


def test_the_best_blocks_of_each_row_ties_to_the_lower() -> None:
    logits = torch.randint(3, (200, 5), generator=torch.Generator().manual_seed(0)).float()
    for active in range(1, 6):
        act, gates = route_topk(logits, active)
        for row, chosen, gate in zip(logits.tolist(), act.tolist(), gates, strict=True):
            assert chosen == sorted(sorted(range(5), key=lambda i, row=row: (-row[i], i))[:active])
            torch.testing.assert_close(gate, 2 * torch.sigmoid(torch.tensor([row[i] for i in chosen])))


def test_gradient_reaches_the_chosen_alone() -> None:
    logits = torch.randn(30, 4, dtype=F64, requires_grad=True)
    act, gates = route_topk(logits, 2)
    upstream = torch.randn(30, 2, dtype=F64)
    (gates * upstream).sum().backward()
    p = torch.sigmoid(logits.detach())
    expected = torch.zeros(30, 4, dtype=F64).scatter_(1, act, upstream) * 2 * p * (1 - p)
    torch.testing.assert_close(logits.grad, expected)
    assert (logits.grad[expected == 0] == 0).all()


@pytest.mark.parametrize(("blocks", "active"), [(1, 1), (4, 2), (4, 4), (5, 3), (8, 1), (8, 4)])
def test_a_plan_groups_rows_stably(blocks: int, active: int) -> None:
    act, _ = route_topk(torch.randn(300, blocks, generator=torch.Generator().manual_seed(1)), active)
    plan = route_plan(act, blocks)
    members = list(itertools.combinations(range(blocks), active))
    assert plan.sets.members() == members
    numbers = [members.index(tuple(row)) for row in act.tolist()]
    assert plan.perm.tolist() == sorted(range(300), key=lambda t: (numbers[t], t))
    assert torch.equal(plan.perm[plan.inverse], torch.arange(300))
    assert plan.sets.offsets.tolist() == [sum(n < s for n in numbers) for s in range(len(members) + 1)]
    assert plan.counts.tolist() == [sum(block in members[n] for n in numbers) for block in range(blocks)]
    assert int(plan.counts.sum()) == 300 * active


def test_balance_is_one_for_even_use_and_more_for_uneven() -> None:
    act = torch.tensor(list(itertools.combinations(range(4), 2)))
    torch.testing.assert_close(balance_loss(torch.zeros(6, 4), act), torch.tensor(1.0))
    logits = torch.full((50, 4), -100.0)
    logits[:, [1, 3]] = 3.0
    torch.testing.assert_close(balance_loss(logits, route_topk(logits, 2)[0]), torch.tensor(2.0))
    assert balance_loss(torch.zeros(0, 4), torch.zeros(0, 2, dtype=torch.int64)) == 0
    leaf = torch.randn(7, 4, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: balance_loss(x, route_topk(leaf.detach(), 2)[0]), (leaf,))


# ---- the layer -------------------------------------------------------------------------------------------------------


class Layer:
    """A small layer: its tensors in float64, as projections of a dtype, and the dense computation."""

    def __init__(
        self,
        n: int = 33,
        C: int = 12,
        F: int = 24,
        *,
        gated: bool = True,
        rank: int = 3,
        bias: bool = True,
        adapted: tuple[str, ...] = ("gate", "up", "down"),
        seed: int = 0,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=F64)

        self.tensors: dict[str, Tensor] = {"x": draw(n, C), "residual": draw(n, C), "norm": 1 + 0.1 * draw(C)}
        for name, (rows, columns) in {"gate": (F, C), "up": (F, C), "down": (C, F)}.items():
            if name == "gate" and not gated:
                continue
            self.tensors[f"{name}.weight"] = draw(rows, columns) / columns**0.5
            if bias:
                self.tensors[f"{name}.bias"] = 0.1 * draw(rows)
            if rank and name in adapted:
                self.tensors[f"{name}.a"], self.tensors[f"{name}.b"] = (
                    draw(rank, columns) / columns**0.5,
                    draw(rows, rank),
                )
        self.names = ("gate", "up") if gated else ("up",)
        self.rank = rank

    def leaves(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {name: x.clone().to(dtype).requires_grad_() for name, x in self.tensors.items()}


SCALING = 0.5


def projection(leaves: dict[str, Tensor], name: str) -> Projection:
    return Projection(
        leaves[f"{name}.weight"], leaves.get(f"{name}.bias"), leaves.get(f"{name}.a"), leaves.get(f"{name}.b"), SCALING
    )


def routed(
    layer: Layer, leaves: dict[str, Tensor], plan: RoutePlan, gates: Tensor | None, mode: str, act: str
) -> Tensor:
    return routed_ffn(
        leaves["x"],
        [projection(leaves, name) for name in layer.names],
        projection(leaves, "down"),
        plan,
        gates,
        Norm(leaves["norm"]),
        activation=act,
        residual=leaves["residual"],
        mode=mode,
    )


def dense(
    layer: Layer, leaves: dict[str, Tensor], chosen: Tensor, gates: Tensor | None, mode: str, act: str, blocks: int
) -> Tensor:
    """The dense layer, hidden units of inactive blocks taken out, gates [n,active] where the mode says."""
    x = leaves["x"]
    z = x * (x.square().mean(1, keepdim=True) + 1e-6).rsqrt() * leaves["norm"]
    c = x.new_ones(chosen.shape) if gates is None or mode == "none" else gates.to(x.dtype)
    F = leaves["up.weight"].shape[0]
    spread = x.new_zeros(len(x), blocks).scatter(1, chosen, c).repeat_interleave(F // blocks, 1)
    inside = x.new_zeros(len(x), blocks).scatter(1, chosen, torch.ones_like(c)).repeat_interleave(F // blocks, 1)
    wide = []
    for name in layer.names:
        p = projection(leaves, name)
        u = functional.linear(z, p.weight, p.bias)
        u = u * spread if mode == "double" else u
        if p.lora_a is not None:
            u = u + (z @ p.lora_a.mT) @ p.lora_b.mT * SCALING
        wide.append(u)
    h = ACTS[act](wide[0]) * wide[1] if len(wide) == 2 else ACTS[act](wide[0])
    p = projection(leaves, "down")
    weighted, own = h * spread, h * (inside if mode == "double" else spread)
    y = functional.linear(weighted, p.weight, p.bias)
    if p.lora_a is not None:
        y = y + (own @ p.lora_a.mT) @ p.lora_b.mT * SCALING
    return leaves["residual"] + y


def learned(y: Tensor, leaves: dict[str, Tensor], gates: Tensor | None) -> dict[str, Tensor]:
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=F64).to(y.dtype)
    (y * weight).sum().backward()
    found = {"y": y.detach()} | {f"d{name}": x.grad for name, x in leaves.items()}
    return found if gates is None else found | {"dgates": gates.grad}


def route(n: int, blocks: int, active: int, dtype: torch.dtype) -> tuple[RoutePlan, Tensor, Tensor]:
    """A plan, its blocks, and gates as a leaf."""
    logits = torch.randn(n, blocks, generator=torch.Generator().manual_seed(7), dtype=F64)
    act, gates = route_topk(logits, active)
    return route_plan(act, blocks), act, gates.to(dtype).requires_grad_()


CONFIGS = {
    "two of four": (Layer(), 4, 2, "silu"),
    "no adapters": (Layer(rank=0), 4, 2, "gelu"),
    "plain": (Layer(gated=False), 4, 1, "relu"),
    "one of eight": (Layer(F=32), 8, 1, "silu"),
    "no bias": (Layer(bias=False), 2, 1, "silu"),
    "all": (Layer(), 4, 4, "silu"),
    "adapter on up alone": (Layer(adapted=("up",)), 4, 2, "silu"),
    "on gate alone": (Layer(adapted=("gate",)), 4, 2, "silu"),
    "on up and down": (Layer(adapted=("up", "down")), 4, 2, "silu"),
}


@pytest.mark.parametrize("mode", ["out", "none", "double"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_dense_layer_without_the_inactive_units(name: str, dtype: torch.dtype, mode: str) -> None:
    layer, blocks, active, act = CONFIGS[name]
    plan, chosen, gates = route(33, blocks, active, dtype)
    leaves = layer.leaves(dtype)
    found = learned(routed(layer, leaves, plan, gates, mode, act), leaves, None if mode == "none" else gates)
    results = {}
    for kind in (F64, F32 if dtype == F64 else dtype):
        own = {key: x.detach().to(kind).requires_grad_() for key, x in leaves.items()}
        c = gates.detach().to(kind).requires_grad_()
        y = dense(layer, own, chosen, c, mode, act, blocks)
        results[kind] = learned(y, own, None if mode == "none" else c)
    exact, rounded = results[F64], results[F32 if dtype == F64 else dtype]
    for key, value in found.items():
        # The layer's parts are several ops in our dtype, as torch's are.
        assert_error_bound(f"{name} {mode} {key}", value, rounded[key], exact[key], FORWARD if key == "y" else BACKWARD)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
@pytest.mark.parametrize("mode", ["out", "none", "double"])
def test_all_blocks_with_gates_of_one_are_the_dense_layer(blocks: int, mode: str) -> None:
    layer = Layer()
    plan, chosen, _ = route(33, blocks, blocks, F64)
    one, other = layer.leaves(F64), layer.leaves(F64)
    found = learned(routed(layer, one, plan, torch.ones(33, blocks, dtype=F64), mode, "silu"), one, None)
    wanted = learned(dense(layer, other, chosen, None, "none", "silu", blocks), other, None)
    for key, value in found.items():
        torch.testing.assert_close(value, wanted[key], rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    torch.set_num_threads(1)  # thousands of products of a few numbers
    layer = Layer(n=5, C=3, F=8, rank=1)
    plan, _, gates = route(5, 4, 2, F64)
    leaves = layer.leaves(F64)
    names = list(leaves)

    def run(c: Tensor, *tensors: Tensor) -> Tensor:
        return routed(layer, dict(zip(names, tensors, strict=True)), plan, c, "out", "silu")

    assert torch.autograd.gradcheck(run, (gates, *leaves.values()))


def test_permuted_blocks_and_tokens() -> None:
    layer = Layer(bias=False)
    leaves = {name: x.detach() for name, x in layer.leaves(F64).items()}
    logits = torch.randn(33, 4, dtype=F64)
    act, gates = route_topk(logits, 2)
    y = routed(layer, leaves, route_plan(act, 4), gates, "out", "silu")
    order = torch.tensor([2, 0, 3, 1])
    moved = dict(leaves)
    for name in ("gate", "up"):
        for part in ("weight", "b"):
            moved[f"{name}.{part}"] = leaves[f"{name}.{part}"].unflatten(0, (4, 6))[order].flatten(0, 1)
    for part in ("weight", "a"):
        moved[f"down.{part}"] = leaves[f"down.{part}"].unflatten(1, (4, 6))[:, order].flatten(1)
    act, gates = route_topk(logits[:, order], 2)
    torch.testing.assert_close(routed(layer, moved, route_plan(act, 4), gates, "out", "silu"), y)
    tokens = torch.randperm(33)
    act, gates = route_topk(logits[tokens], 2)
    turned = leaves | {name: leaves[name][tokens] for name in ("x", "residual")}
    torch.testing.assert_close(routed(layer, turned, route_plan(act, 4), gates, "out", "silu"), y[tokens])


def test_all_tokens_on_one_set_and_empty_blocks() -> None:
    layer = Layer()
    leaves = layer.leaves(F32)
    act = torch.tensor([1, 3]).expand(33, 2).contiguous()
    gates = torch.ones(33, 2).requires_grad_()
    found = learned(routed(layer, leaves, route_plan(act, 4), gates, "out", "silu"), leaves, gates)
    assert all(torch.isfinite(value).all() for value in found.values())
    for key in ("dup.weight", "dgate.weight", "dup.b"):
        parts = found[key].unflatten(0, (4, 6))
        assert (parts[[0, 2]] == 0).all()
        assert (parts[[1, 3]] != 0).any()


@pytest.mark.parametrize("mode", ["out", "double"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_all_of_a_norm_goes_before_the_router_and_the_layer(kind: str, mode: str) -> None:
    leaves = {name: x.detach() for name, x in Layer().leaves(F64).items()}
    plan, _, gates = route(33, 4, 2, F64)
    up, down = [projection(leaves, name) for name in ("gate", "up")], projection(leaves, "down")
    x, columns = leaves["x"], leaves["x"].shape[1]
    weight, bias = torch.linspace(-1, 1, columns, dtype=F64), torch.linspace(2, 3, columns, dtype=F64)
    norm = Norm(weight, bias, kind, 1e-3, 1.0)
    z, _ = reference.norm(x, weight, bias, centered=kind == "layer", eps=1e-3, weight_offset=1.0)
    router = torch.randn(4, columns, dtype=F64), torch.randn(4, dtype=F64)
    torch.testing.assert_close(route_logits(x, *router, norm), functional.linear(z, *router))
    found = (
        routed_ffn(rows, up, down, plan, gates, n, activation="silu", mode=mode) for rows, n in ((x, norm), (z, None))
    )
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("mode", ["out", "none"])
def test_merged_adapters_are_the_same(mode: str) -> None:
    layer = Layer()
    leaves = {name: x.detach() for name, x in layer.leaves(F64).items()}
    plan, _, gates = route(33, 4, 2, F64)
    y = routed(layer, leaves, plan, gates.detach(), mode, "silu")
    merged = dict(leaves)
    for name in ("gate", "up", "down"):
        a, b = merged.pop(f"{name}.a"), merged.pop(f"{name}.b")
        merged[f"{name}.weight"] = leaves[f"{name}.weight"] + SCALING * b @ a
    torch.testing.assert_close(routed(layer, merged, plan, gates.detach(), mode, "silu"), y)


def test_threads_change_no_bit() -> None:
    layer = Layer(n=300, C=48, F=64)
    plan, _, gates = route(300, 4, 2, F32)

    def run() -> dict[str, Tensor]:
        leaves, c = layer.leaves(F32), gates.detach().clone().requires_grad_()
        return learned(routed(layer, leaves, plan, c, "out", "silu"), leaves, c)

    assert_threads_change_no_bit(run)


def test_saved_bytes() -> None:
    """Gate and up of the active blocks, the adapters' ranks, gates and plan; x is there anyway."""
    n, C, F, R = 2048, 64, 256, 4
    layer = Layer(n=n, C=C, F=F, rank=R, bias=False)
    leaves = {name: x.to(F32) for name, x in layer.tensors.items()}
    for name, x in leaves.items():
        x.requires_grad_(name in ("x",) or name.endswith((".a", ".b")))
    plan, _, gates = route(n, 4, 2, F32)
    with measure() as live:
        y = routed(layer, leaves, plan, gates, "out", "silu")
    expected = 4 * n * (2 * F // 2 + 3 * R + C)  # y itself is C
    assert abs(live.end_bytes - expected) <= 0.02 * expected
    del y


def test_compile() -> None:
    layer = Layer()
    leaves = {name: x.detach() for name, x in layer.leaves(F32).items()}

    def run(logits: Tensor, x: Tensor) -> Tensor:
        act, gates = route_topk(logits, 2)
        return routed(layer, leaves | {"x": x}, route_plan(act, 4), gates, "out", "silu")

    logits = torch.randn(33, 4)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(logits, leaves["x"]), run(logits, leaves["x"]))


PLAN = route(33, 4, 2, F32)[0]
LEAVES = {name: x.detach() for name, x in Layer().leaves(F32).items()}
UP = [projection(LEAVES, name) for name in ("gate", "up")]
DOWN = projection(LEAVES, "down")
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: route_topk(torch.zeros(3), 1), r"logits are torch.float32 \(3,\)"),
    (lambda: route_topk(torch.zeros(3, 4), 5), "active is 5; allowed: 1 to 4 blocks"),
    (lambda: route_topk(torch.zeros(3, 9), 1), "1 to 8"),
    (lambda: route_plan(torch.zeros(3, 2), 4), "act is torch.float32"),
    (lambda: route_plan(torch.tensor([[1, 1]]), 4), "must increase from 0 to 3 at most"),
    (lambda: route_plan(torch.tensor([[1, 4]]), 4), "must increase from 0 to 3 at most"),
    (lambda: balance_loss(torch.zeros(1, 4), torch.tensor([[2, 2]])), "must increase from 0 to 3 at most"),
    (lambda: balance_loss(torch.zeros(2, 4), torch.tensor([[2, 3]])), "act is torch.int64"),
    (lambda: balance_loss(torch.zeros(1, 4), torch.tensor([[2]], device="meta")), "must be on one device"),
    (lambda: route_plan(torch.zeros(3, 5, dtype=torch.int64), 4), "with active at most blocks"),
    (
        lambda: routed_ffn(LEAVES["x"], UP, DOWN, PLAN, activation="silu", mode="in"),
        "mode is 'in'; allowed: out, none, double",
    ),
    (lambda: routed_ffn(LEAVES["x"][:5], UP, DOWN, PLAN, activation="silu"), "the plan is of 33 rows; x has 5"),
    (lambda: routed_ffn(LEAVES["x"], UP, DOWN, PLAN, torch.ones(33, 1), activation="silu"), "gates have shape"),
    (lambda: routed_ffn(LEAVES["x"], UP * 2, DOWN, PLAN, activation="silu"), "4 projections up"),
    (
        lambda: routed_ffn(LEAVES["x"], UP, replace(DOWN, residual=LEAVES["x"]), PLAN, activation="silu"),
        "a projection has a residual",
    ),
    (
        lambda: routed_ffn(LEAVES["x"], [Projection(torch.zeros(10, 12))], DOWN, PLAN, activation="silu"),
        "10 hidden units do not divide into 4 blocks",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
