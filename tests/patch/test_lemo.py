"""Token elimination against a stock float64 model with masks: every family, mode, batch and companion."""

from __future__ import annotations

import copy
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

import longspan
from families import build, gradients, recipe, tokens
from longspan.ops import TokenBlocks
from longspan.registry import register
from longspan.tokens.lemo import LeMo
from masked import Fixed, masked

LENGTH, BLOCK = 44, 8
WHOLE = [[(0, LENGTH)], [(0, LENGTH)]]
MODES = [("eliminate", "dense"), ("eliminate", "skip"), ("eliminate", "rows"), ("dense", "dense"), ("dense", "rows")]


def lemo(**changes: Any) -> dict[str, Any]:
    """The method in both layers of a tiny model."""
    return {"method": "lemo", "keep_ratio": 0.4, "layers": [0, 1], "block": BLOCK, "selector": "random"} | changes


def step(model: Any, ids: Tensor, **inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    model.train()
    labels = ids.masked_fill(torch.arange(ids.shape[1]) % 5 == 0, -100)
    loss = model(ids, labels=labels, use_cache=False, **inputs).loss
    loss.backward()
    return loss.detach(), gradients(model)


def pair(family: str, **options: Any) -> tuple[Any, Any]:
    """A float64 model and its stock twin."""
    model = build(family, attn_implementation="eager", **options).double()
    return model, copy.deepcopy(model)


def layer_paths(model: Any) -> list[str]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [name for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]


def assert_equal_steps(given: Any, right: Any, close: float = 2e-5) -> None:
    """Transformers' norms and softmax are in float32 even in a float64 model."""
    (loss, found), (expected, wanted) = given, right
    assert abs(float(loss) - float(expected)) <= close * abs(float(expected))
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        largest = float(wanted[name].abs().max())
        error = float((gradient - wanted[name]).abs().max())
        assert error <= close * max(largest, 1e-3), f"{name}: error {error:.1e}, largest entry {largest:.1e}"


def check(
    model: Any, twin: Any, fixed: Fixed, ids: Tensor, config: dict[str, Any], inputs: Any = None, **rest: Any
) -> None:
    """One step of the patched model against the masked twin."""
    inputs = inputs or {}
    stock_inputs = inputs.pop("stock", inputs)
    longspan.patch(model, recipe(LENGTH, tokens=config, **rest))
    paths = layer_paths(twin)
    inner = "base_model.model." if paths[0].startswith("base_model.") else ""
    kept = {path: fixed.kept(path.removeprefix(inner)) for path in paths}
    with fixed.installed():
        given = step(model, ids, **inputs)
    assert len(fixed.calls) == len(paths), "a layer chose twice, or not at all"
    with masked(twin, kept, eliminate=config["forward"] == "eliminate", mlp=config["mlp"]):
        right = step(twin, ids, **stock_inputs)
    assert_equal_steps(given, right)


@pytest.mark.parametrize(("forward", "mlp"), MODES)
def test_equals_the_masked_model(family: str, forward: str, mlp: str) -> None:
    model, twin = pair(family)
    fixed = Fixed(WHOLE, LENGTH, BLOCK, 0.4)
    check(model, twin, fixed, tokens(2, LENGTH), lemo(forward=forward, mlp=mlp))


@pytest.mark.parametrize("recompute", ["mlp", "mlp+qkv", "layer"])
@pytest.mark.parametrize(("forward", "mlp"), MODES)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt_neox"])
def test_recompute_replays_the_choice(family: str, forward: str, mlp: str, recompute: str) -> None:
    model, twin = pair(family)
    fixed = Fixed(WHOLE, LENGTH, BLOCK, 0.4)
    config = lemo(forward=forward, mlp=mlp)
    if recompute == "layer":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    check(model, twin, fixed, tokens(2, LENGTH), config, memory={"recompute": recompute})


@pytest.mark.parametrize("part", ["norm", "mlp", "rope", "lora"])
@pytest.mark.parametrize(("forward", "mlp"), MODES)
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_switched_off_parts(family: str, forward: str, mlp: str, part: str) -> None:
    model, twin = pair(family)
    fixed = Fixed(WHOLE, LENGTH, BLOCK, 0.4)
    check(model, twin, fixed, tokens(2, LENGTH), lemo(forward=forward, mlp=mlp), lean={part: False})


def _adapted(model: Any, targets: list[str]) -> Any:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(5)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=targets, lora_dropout=0.0)).double()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return adapted


@pytest.mark.parametrize("recompute", ["none", "mlp+qkv"])
@pytest.mark.parametrize(("forward", "mlp"), MODES)
def test_lora(forward: str, mlp: str, recompute: str) -> None:
    model, twin = (
        _adapted(one, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]) for one in pair("llama")
    )
    fixed = Fixed(WHOLE, LENGTH, BLOCK, 0.4)
    check(model, twin, fixed, tokens(2, LENGTH), lemo(forward=forward, mlp=mlp), memory={"recompute": recompute})


def packed_inputs(lengths: list[int]) -> dict[str, Any]:
    borders = torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    named = {
        "cu_seq_lens_q": borders,
        "cu_seq_lens_k": borders,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    return {"position_ids": positions, **named, "stock": {"position_ids": positions}}


@pytest.mark.parametrize(("forward", "mlp"), MODES)
@pytest.mark.parametrize("family", ["llama", "mistral_window", "phi3"])
def test_packed_documents(family: str, forward: str, mlp: str) -> None:
    lengths = [19, 1, 24]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    documents = [[(end - n, end) for n, end in zip(lengths, ends, strict=True)]]
    model, twin = pair(family)
    fixed = Fixed(documents, LENGTH, BLOCK, 0.4)
    check(model, twin, fixed, tokens(1, LENGTH), lemo(forward=forward, mlp=mlp), packed_inputs(lengths))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("forward", "mlp"), [MODES[0], MODES[4]])
def test_padding_is_never_chosen(forward: str, mlp: str, side: str) -> None:
    model, twin = pair("llama")
    real = torch.ones(2, LENGTH, dtype=torch.int64)
    part = slice(0, 13) if side == "left" else slice(LENGTH - 13, LENGTH)
    real[1, part] = 0
    documents = [[(0, LENGTH)], [(13, LENGTH) if side == "left" else (0, LENGTH - 13)]]
    fixed = Fixed(documents, LENGTH, BLOCK, 0.4)
    ids = tokens(2, LENGTH)
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    labels = ids.masked_fill((real == 0) | (positions == 0), -100)  # nor what a row of padding would predict
    config = lemo(forward=forward, mlp=mlp)
    longspan.patch(model, recipe(LENGTH, tokens=config))
    results = []
    kept = {path: fixed.kept(path) for path in layer_paths(twin)}
    assert not any((mask & (real == 0)).any() for mask in kept.values())
    with fixed.installed(), masked(twin, kept, eliminate=forward == "eliminate", mlp=mlp):
        for one in (model, twin):
            one.train()
            inputs = {"attention_mask": real, "position_ids": positions, "use_cache": False}
            loss = one(ids, labels=labels, **inputs).loss
            loss.backward()
            results.append((loss.detach(), gradients(one)))
    assert_equal_steps(*results)


@pytest.mark.parametrize(("forward", "mlp"), MODES)
def test_first_step_of_the_dense_forward_is_dense(forward: str, mlp: str) -> None:
    """Bit for bit with forward: dense; another loss when tokens are eliminated."""
    model = build("llama")
    twin = copy.deepcopy(model)
    ids = tokens(2, LENGTH)
    longspan.patch(model, recipe(LENGTH, tokens=lemo(forward=forward, mlp=mlp)))
    longspan.patch(twin, recipe(LENGTH))
    (given, _), (dense, _) = step(model, ids), step(twin, ids)
    assert bool(given == dense) == (forward == "dense")
    model.eval()
    twin.eval()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, twin(ids).logits), "evaluation is dense"


@pytest.mark.parametrize("recompute", ["none", "mlp+qkv"])
@pytest.mark.parametrize(("forward", "mlp"), MODES)
def test_keep_all_is_the_dense_layer(family: str, forward: str, mlp: str, recompute: str) -> None:
    model, twin = pair(family)
    memory = {"recompute": recompute}
    longspan.patch(model, recipe(LENGTH, tokens=lemo(forward=forward, mlp=mlp, keep_ratio=1.0), memory=memory))
    longspan.patch(twin, recipe(LENGTH))
    ids = tokens(2, LENGTH)
    assert_equal_steps(step(model, ids), step(twin, ids), 1e-12)


@pytest.mark.parametrize("pattern", [{"method": "s2", "group_size": 16}, {"method": "window", "size": 7}])
@pytest.mark.parametrize("forward", ["eliminate", "dense"])
def test_patterns_see_original_positions(forward: str, pattern: dict[str, Any]) -> None:
    """Kept rows under a pattern: as the pattern on all rows with the dropped ones masked."""
    model, _ = pair("llama")
    fixed = Fixed(WHOLE, LENGTH, BLOCK, 0.4)
    sparse = {"train": {"method": pattern["method"], **{k: v for k, v in pattern.items() if k != "method"}}}
    longspan.patch(model, recipe(LENGTH, tokens=lemo(forward=forward, mlp="dense"), attention=sparse))
    twin, _ = pair("llama")
    longspan.patch(twin, recipe(LENGTH, attention=sparse))
    ids = tokens(2, LENGTH)
    with fixed.installed():
        given = step(model, ids)
    # The engine's own dense run with dropped tokens as padding in each layer: padding sees and is seen by nothing.
    kept = {path: fixed.kept(path) for path in layer_paths(twin)}
    with padded_layers(twin, kept, eliminate=forward == "eliminate"):
        right = step(twin, ids)
    assert_equal_steps(given, right)


def padded_layers(model: Any, kept: dict[str, Tensor], *, eliminate: bool) -> Any:
    """A patched model in which each layer's mask calls its dropped tokens padding, or only its gradient does."""
    from contextlib import contextmanager

    from longspan.patch.tokens.stream import RowsMask

    @contextmanager
    def inside() -> Any:
        handles = []
        for path, mask in kept.items():
            layer = model.get_submodule(path)

            def before(module: Any, args: Any, kwargs: dict[str, Any], mask: Tensor = mask) -> Any:
                if not eliminate:
                    return args, kwargs
                doc = torch.where(mask, 0, -1).int()
                planes = torch.stack([doc, torch.arange(LENGTH).expand_as(doc).int()]).contiguous()
                rows = RowsMask(longspan.ops.TokenLayout(planes, planes), None)
                rows.batch = len(mask)
                return args, kwargs | {"attention_mask": rows}

            def after(module: Any, given: Any, output: Any, mask: Tensor = mask) -> Any:
                m = mask.reshape(-1, 1) if output.dim() == 2 else mask[..., None]
                return torch.where(m, output, output.detach())

            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
            if not eliminate:
                for name in ("q_proj", "k_proj", "v_proj"):
                    handles.append(getattr(layer.self_attn, name).register_forward_hook(after))
                handles.append(layer.self_attn.o_proj.register_forward_hook(after))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    return inside()


class EarlyBlocks(LeMo):
    """Keeps the first blocks of each sample."""

    method: Literal["early"] = "early"

    def block_scores(self, rows: Tensor, blocks: TokenBlocks) -> Tensor:
        """Falls with the place."""
        return -torch.arange(len(blocks.counts), dtype=torch.float64)


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize("forward", ["eliminate", "dense"])
def test_scores_of_a_method_of_ones_own_decide(forward: str) -> None:
    register("tokens", "early")(EarlyBlocks)
    model, twin = pair("llama")
    config = lemo(forward=forward, mlp="rows", method="early")
    report = longspan.patch(model, recipe(LENGTH, tokens=config))
    assert "tokens: early" in str(report)
    assert "by its own scores" in str(report)
    kept = torch.zeros(2, LENGTH, dtype=torch.bool)
    kept[:, : int(0.4 * -(-LENGTH // BLOCK)) * BLOCK] = True
    given = step(model, tokens(2, LENGTH))
    with masked(twin, dict.fromkeys(layer_paths(twin), kept), eliminate=forward == "eliminate", mlp=config["mlp"]):
        assert_equal_steps(given, step(twin, tokens(2, LENGTH)))
