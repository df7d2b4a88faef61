"""Routed feed-forward in patched models: all blocks are the dense layer, some are its hidden units cut away."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import longspan
from families import assert_all_as_good, build, double, gradients, recipe, tokens
from longspan import ops
from longspan.nn.router import Router
from longspan.patch.layers import STATE
from longspan.patch.layers.parts import attribute
from longspan.patch.routed.feed_forward import ROUTER
from longspan.patch.steps import steps_of

LENGTH = 40


def method(**changes: Any) -> dict[str, Any]:
    return {"method": "routed", "blocks": 4, "active": 2, "calibrate": False, "balance": 0.0} | changes


def patched(model: Any, evaluates: bool = False, **changes: Any) -> Any:
    rest = {name: changes.pop(name) for name in ("memory", "lean", "tokens", "trainer") if name in changes}
    section = {"train": method(**changes), "eval": "routed" if evaluates else "dense"}
    longspan.patch(model, recipe(96, ffn=section, **rest))
    return model


def routers(model: nn.Module) -> list[Router]:
    return [module for module in model.modules() if isinstance(module, Router)]


def step(model: Any, ids: Tensor, **inputs: Any) -> tuple[float, dict[str, Tensor]]:
    model.train()
    loss = model(ids, labels=ids, use_cache=False, **inputs).loss
    loss.backward()
    return float(loss), gradients(model)


def without_routers(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in found.items() if ROUTER not in name}


@pytest.mark.parametrize("gate", ["none", "out", "double"])
def test_all_blocks_with_gates_of_one_are_the_dense_layer(family: str, gate: str) -> None:
    ids = tokens(2, LENGTH)
    stock, oracle, model = build(family), double(build(family)), patched(build(family), active=4, gate=gate)
    for router in routers(model):
        nn.init.zeros_(router.weight)
    given, baseline, right = step(model, ids), step(stock, ids), step(oracle, ids)
    assert abs(given[0] - right[0]) <= 2 * abs(baseline[0] - right[0]) + 2e-6 * right[0]
    assert_all_as_good(without_routers(given[1]), baseline[1], right[1])


@contextmanager
def cut(model: Any, routed: Any, active: int) -> Iterator[None]:
    """Inside, the stock model's layers zero the hidden units of blocks that the routers of `routed` do not choose."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    both = ([m for m in one.modules() if isinstance(m, GradientCheckpointingLayer)] for one in (model, routed))
    handles = []
    for layer, twin in zip(*both, strict=True):
        family = getattr(twin, STATE).family
        seen: dict[str, Tensor] = {}

        def see(_: Any, __: Any, z: Tensor, seen: dict[str, Tensor] = seen) -> None:
            seen["z"] = z.detach()

        def mask(_: Any, given: tuple[Tensor], seen: dict[str, Tensor] = seen, twin: Any = twin) -> tuple[Tensor]:
            (hidden,) = given
            logits = getattr(twin, ROUTER)(seen["z"].reshape(-1, seen["z"].shape[-1]))
            chosen = torch.zeros_like(logits).scatter_(1, ops.route_topk(logits, active)[0], 1.0)
            wide = chosen.repeat_interleave(hidden.shape[-1] // logits.shape[1], 1)
            return (hidden * wide.detach().to(hidden.dtype).reshape(hidden.shape),)

        handles.append(attribute(layer, family.norm2).register_forward_hook(see))
        handles.append(attribute(layer, family.down).register_forward_pre_hook(mask))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def test_inactive_blocks_are_cut_away(family: str) -> None:
    ids = tokens(2, LENGTH)
    model, twin = build(family).double(), build(family).double()
    patched(model, gate="none", active=1)
    for number, router in enumerate(routers(model)):
        nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(number))
    given = step(model, ids)
    with cut(twin, model, 1):
        right = step(twin, ids)
    assert given[0] == pytest.approx(right[0], rel=2e-5)
    largest = max(float(x.abs().max()) for x in right[1].values())
    for name, gradient in without_routers(given[1]).items():
        assert float((gradient - right[1][name]).abs().max()) <= 2e-5 * largest, name


def adapted(model: Any, targets: list[str], dropout: float = 0.0) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=dropout))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return wrapped


TARGETS = {
    "llama": ["gate_proj", "up_proj", "down_proj", "q_proj"],
    "phi3": ["gate_up_proj", "down_proj"],
    "gpt2": ["c_fc", "mlp.c_proj"],
    "opt": ["fc1", "fc2"],
}


@pytest.mark.parametrize("gate", ["none", "out"])
@pytest.mark.parametrize("family", TARGETS)
def test_adapters_inside_the_blocks_can_be_merged(family: str, gate: str) -> None:
    """The same output with the adapters folded into the weights."""
    ids = tokens(1, LENGTH)
    model = adapted(build(family).double(), TARGETS[family]).double()
    patched(model, gate=gate, evaluates=True)
    base = model.get_base_model()
    for number, router in enumerate(routers(base)):
        nn.init.normal_(router.weight, generator=torch.Generator().manual_seed(number))
    model.eval()
    with torch.no_grad():
        expected = model(ids).logits
        model.merge_adapter()
        torch.testing.assert_close(model(ids).logits, expected)
    model.unmerge_adapter()
    _, found = step(model, ids)
    assert all(float(x.abs().sum()) > 0 for name, x in found.items() if "lora_" in name)


@pytest.mark.parametrize("recompute", ["mlp", "mlp+qkv", "layer"])
@pytest.mark.parametrize("gate", ["out", "double"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox", "gpt2"])
def test_recompute_takes_the_same_way(family: str, gate: str, recompute: str) -> None:
    ids, found = tokens(2, LENGTH), []
    for again in ("none", recompute):
        model = patched(build(family).double(), gate=gate, balance=0.5, memory={"recompute": again})
        if again == "layer":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append(step(model, ids))
    (loss, one), (other, two) = found
    assert loss == other
    assert one.keys() == two.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-7, atol=1e-10)


def test_packing_and_order_do_not_matter() -> None:
    """A token's way depends on the token alone: rows of a batch swapped, and swapped back."""
    model = patched(build("llama").double(), evaluates=True)
    ids = tokens(3, LENGTH)
    with torch.no_grad():
        torch.testing.assert_close(model(ids[[2, 0, 1]]).logits, model(ids).logits[[2, 0, 1]])


def test_evaluation_is_dense_unless_asked() -> None:
    ids = tokens(1, LENGTH)
    stock = build("llama")
    with torch.no_grad():
        right = stock(ids).logits
        torch.testing.assert_close(patched(build("llama"))(ids).logits, right, rtol=1e-4, atol=1e-4)
        assert (patched(build("llama"), evaluates=True)(ids).logits - right).abs().max() > 1e-2


def test_the_balance_loss_reaches_the_routers_alone_where_gates_are_none() -> None:
    ids = tokens(1, LENGTH)
    one, two = (patched(build("llama").double(), gate="none", balance=b) for b in (0.0, 2.0))
    (_, without), (_, found) = step(one, ids), step(two, ids)
    for name in found:
        if ROUTER in name:
            assert name not in without or float(without[name].abs().max()) == 0
            assert float(found[name].abs().max()) > 0


def test_the_balance_loss_evens_the_loads() -> None:
    model = patched(build("llama"), balance=1.0)
    for router in routers(model):
        with torch.no_grad():
            router.bias.copy_(torch.tensor([3.0, 2.0, 0.0, -1.0]))
    optimizer = torch.optim.AdamW([p for r in routers(model) for p in r.parameters()], lr=0.05)
    loads = []
    for number in range(80):
        model.train()
        model(tokens(2, LENGTH, seed=number), labels=tokens(2, LENGTH, seed=number), use_cache=False).loss.backward()
        found = steps_of(model.model).losses.figures["block_load"].values()
        loads.append(max(float(load) for load in found))
        optimizer.step()
        model.zero_grad()
    assert loads[0] == 2.0
    assert loads[-1] < 1.5


def test_the_ramp_falls_from_all_blocks() -> None:
    model = patched(build("llama"), ramp_steps=4, active=2, trainer={"accumulate": 2})
    seen = []
    for layer in model.model.layers:
        getattr(layer, STATE).route.watch = lambda plan: seen.append(plan.sets.active)
    for number in range(12):
        step(model, tokens(1, LENGTH, seed=number))
    assert seen[::2] == [4, 4, 4, 4, 3, 3, 3, 3, 2, 2, 2, 2]


def test_calibration_keeps_more_of_the_layer() -> None:
    """Blocks of very different size: a fitted router finds the large ones."""
    ids, errors = tokens(2, LENGTH), {}
    stock = build("llama")
    with torch.no_grad():
        for layer in stock.model.layers:
            layer.mlp.down_proj.weight[:, 24:48] *= 8
            layer.mlp.down_proj.weight[:, 72:] *= 8
        for calibrate in (True, False):
            model = patched(copy.deepcopy(stock), gate="none", calibrate=calibrate, evaluates=True)
            errors[calibrate] = float((model(ids).logits - stock(ids).logits).square().mean())
            assert all(router.fitted == calibrate for router in routers(model))
    assert errors[True] < 0.3 * errors[False]


def test_beside_token_elimination() -> None:
    lemo = {"method": "lemo", "layers": [0, 1], "block": 8, "forward": "eliminate", "selector": "random"}
    for mlp in ("dense", "skip"):
        model = patched(build("llama"), tokens=lemo | {"mlp": mlp})
        loss, found = step(model, tokens(2, LENGTH))
        assert torch.isfinite(torch.tensor(loss))
        assert all(bool(torch.isfinite(x).all()) for x in found.values())
    with pytest.raises(ValueError, match=r"ffn.train routed and tokens.mlp rows both choose"):
        patched(build("llama"), tokens=lemo | {"mlp": "rows"})


def test_undo() -> None:
    model = build("llama")
    names = set(model.state_dict())
    report = longspan.patch(model, recipe(96, ffn={"train": method(ramp_steps=5)}))
    assert "ffn: routed in training, 2 of 4 blocks, gate out, from all of them in 5 steps" in str(report)
    assert set(model.state_dict()) == names
    report.undo()
    assert not routers(model)
    assert steps_of(model.model) is None


def test_what_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"96 hidden units do not divide into ffn.train.blocks 5; allowed: 1, 2, 3, 4, 6, 8"
    ):
        patched(build("llama"), blocks=5)
    with pytest.raises(ValueError, match=r"the adapter of mlp.down_proj has 0.1; set adapter.dropout to 0"):
        patched(adapted(build("llama"), ["down_proj"], dropout=0.1).train())
    with pytest.raises(ValueError, match=r"lean.norm, mlp, rope and lora are all false"):
        patched(build("llama"), lean=dict.fromkeys(("norm", "mlp", "rope", "lora"), False))
    broken = build("llama")
    broken.model.layers[1].mlp.up_proj.register_forward_hook(lambda *_: None)
    with pytest.raises(
        ValueError, match=r"model.layers.1: ffn routed needs the blocks of mlp.up_proj, and it has hooks"
    ):
        patched(broken)
    assert not routers(broken)
    with pytest.raises(Exception, match="ffn routed needs eager mode"):
        torch.compile(patched(build("llama")).train(), backend="eager", fullgraph=True)(tokens(1, LENGTH))
