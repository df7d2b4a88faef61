"""Tokens that the backward chooses, channels instead of tokens, and exact or predicted scores."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import longspan
from families import recipe, tokens
from longspan.patch.layers.families import FAMILIES
from longspan.patch.layers.parts import attribute
from longspan.patch.tokens import late, select
from masked import blocks_of, chosen, masked
from test_lemo import BLOCK, LENGTH, WHOLE, _adapted, assert_equal_steps, layer_paths, lemo, pair, step


@contextmanager
def watched() -> Iterator[dict[str, Tensor]]:
    """Rows that layers keep in the backward, by path."""
    found: dict[str, Tensor] = {}
    keep = select.keep

    def see(tokens: Any, scores: Tensor, stream: Any, ratio: float | None = None) -> Any:
        kept = keep(tokens, scores, stream, ratio)
        found[tokens.path] = kept.rows
        return kept

    late.select.keep = see
    try:
        yield found
    finally:
        late.select.keep = keep


def mask_of(rows: Tensor) -> Tensor:
    return torch.zeros(2 * LENGTH, dtype=torch.bool).index_fill(0, rows, True).reshape(2, LENGTH)


def best(values: Tensor) -> Tensor:
    """Bool [2,T]: the blocks with the largest means of values [2,T]."""
    documents = [document for sample in blocks_of(WHOLE, BLOCK) for document in sample]
    scores = [float(values[b, first:end].mean()) for document in documents for b, first, end in document]
    mask = torch.zeros(2, LENGTH, dtype=torch.bool)
    for b, first, end in chosen(scores, documents, 0.4):
        mask[b, first:end] = True
    return mask


@pytest.mark.parametrize("mlp", ["dense", "rows"])
@pytest.mark.parametrize("selector", ["gradient", "token_loss"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3", "gpt_neox", "opt", "gpt2"])
def test_the_backward_chooses(family: str, selector: str, mlp: str) -> None:
    model, twin = pair(family)
    longspan.patch(model, recipe(LENGTH, tokens=lemo(forward="dense", mlp=mlp, selector=selector)))
    ids = tokens(2, LENGTH)
    with watched() as rows:
        given = step(model, ids)
    kept = {path: mask_of(rows[path]) for path in layer_paths(twin)}
    arriving: dict[str, Tensor] = {}
    handles = [twin.get_submodule(path).register_forward_hook(_keep_gradient(path, arriving)) for path in kept]
    with masked(twin, kept, eliminate=False, mlp=mlp):
        right = step(twin, ids)
    for handle in handles:
        handle.remove()
    assert_equal_steps(given, right)
    if selector == "token_loss":
        labels = ids.masked_fill(torch.arange(LENGTH) % 5 == 0, -100)
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
        losses = nn.functional.cross_entropy(twin.eval()(ids).logits.transpose(1, 2), shifted, reduction="none")
        assert all(torch.equal(best(losses.detach()), mask) for mask in kept.values())
    elif mlp == "rows":  # the layer's incoming gradient; with a dense feed-forward it is the one behind the attention
        assert all(torch.equal(best(arriving[path].norm(dim=-1)), mask) for path, mask in kept.items())


def _keep_gradient(path: str, found: dict[str, Tensor]) -> Any:
    def hook(module: nn.Module, given: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden.register_hook(lambda gradient: found.__setitem__(path, gradient.detach().clone()))

    return hook


@pytest.mark.parametrize("selector", ["gradient", "token_loss"])
def test_lora_under_a_checkpoint(selector: str) -> None:
    model, twin = (_adapted(one, ["q_proj", "v_proj", "up_proj"]) for one in pair("llama"))
    model.base_model.model.gradient_checkpointing_enable({"use_reentrant": False})
    longspan.patch(
        model, recipe(LENGTH, tokens=lemo(forward="dense", selector=selector), memory={"recompute": "layer"})
    )
    ids = tokens(2, LENGTH)
    with watched() as rows:
        given = step(model, ids)
    inner = "base_model.model."
    kept = {path: mask_of(rows[path.removeprefix(inner)]) for path in layer_paths(twin)}
    with masked(twin, kept, eliminate=False, mlp="rows"):
        assert_equal_steps(given, step(twin, ids))


def test_losses_of_another_forward_are_not_taken() -> None:
    model, _ = pair("llama")
    longspan.patch(model, recipe(LENGTH, tokens=lemo(forward="dense", selector="token_loss")))
    model.train()
    out = model(tokens(2, LENGTH), use_cache=False)
    with pytest.raises(RuntimeError, match="found no loss of this forward's tokens"):
        out.logits.sum().backward()


@pytest.mark.parametrize("forward", ["eliminate", "dense"])
@pytest.mark.parametrize("family", ["llama", "phi3", "gpt_neox", "opt", "qwen3"])
def test_channels(family: str, forward: str) -> None:
    """mlp: cols is the dense branch with all but the strongest channels' hidden activation a constant."""
    model, twin = pair(family)
    branch = FAMILIES[type(model.get_submodule(layer_paths(model)[0])).__name__]
    for one in (model, twin):
        for path in layer_paths(one):
            layer = one.get_submodule(path)
            for name in (*branch.up, branch.down, branch.norm2):
                attribute(layer, name).requires_grad_(False)
    config = lemo(forward=forward, mlp="cols", mlp_ratio=0.3, keep_ratio=1.0)
    longspan.patch(model, recipe(LENGTH, tokens=config))
    ids = tokens(2, LENGTH)
    given = step(model, ids)
    handles = [
        attribute(twin.get_submodule(path), branch.down).register_forward_pre_hook(
            _strongest(twin.get_submodule(path), branch)
        )
        for path in layer_paths(twin)
    ]
    right = step(twin, ids)
    for handle in handles:
        handle.remove()
    assert_equal_steps(given, right)


def _strongest(layer: nn.Module, family: Any) -> Any:
    sides: dict[str, Tensor] = {}
    for name in family.up:
        attribute(layer, name).register_forward_hook(lambda m, i, y, name=name: sides.__setitem__(name, y.detach()))

    def hook(module: nn.Module, given: Any) -> Any:
        h = given[0]
        wide = [sides[name] for name in family.up]
        if family.gated and len(wide) == 1:
            wide = list(wide[0].chunk(2, -1))
        act = attribute(layer, family.activation)
        score = act(wide[0]).flatten(0, -2).norm(dim=0)
        if family.gated:
            score = score + wide[1].flatten(0, -2).norm(dim=0)
        kept = torch.zeros_like(score, dtype=torch.bool)
        kept[score.argsort(descending=True)[: int(0.3 * len(score))]] = True
        return (torch.where(kept, h, h.detach()),)

    return hook


def test_channels_of_trained_weights_are_refused() -> None:
    model, _ = pair("llama")
    longspan.patch(model, recipe(LENGTH, tokens=lemo(mlp="cols")))
    with pytest.raises(ValueError, match="its weights are trained"):
        step(model, tokens(2, LENGTH))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gpt_neox", "opt"])
def test_exact_scores(family: str) -> None:
    """The selector `scores` by its definition on what the stock projections give."""
    model, twin = pair(family)
    longspan.patch(model, recipe(LENGTH, tokens=lemo(forward="eliminate", selector="scores", mlp="dense", layers=[0])))
    ids = tokens(2, LENGTH)
    with watched() as rows:
        step(model, ids)
    path = layer_paths(twin)[0]
    q, k = _queries_and_keys(twin, path, ids)
    heads = q.shape[2]
    k = k.repeat_interleave(heads // k.shape[2], 2)
    pooled = torch.einsum("bihd,bjhd->bhij", q, k).clamp(min=0).sum(1)
    documents = [document for sample in blocks_of(WHOLE, BLOCK) for document in sample]
    scores = []
    for document in documents:
        for b, first, end in document:
            scores.append(sum(float(pooled[b, i:j, first:end].max()) for _, i, j in document))
    expected = torch.zeros(2, LENGTH, dtype=torch.bool)
    for b, first, end in chosen(scores, documents, 0.4):
        expected[b, first:end] = True
    assert torch.equal(mask_of(rows[path]), expected)


def _queries_and_keys(model: Any, path: str, ids: Tensor) -> tuple[Tensor, Tensor]:
    """[B,T,heads,D] each before any rotation, q and k norms included."""
    layer = model.get_submodule(path)
    family = FAMILIES[type(layer).__name__]
    config = attribute(layer, family.attention).config
    heads = config.num_attention_heads
    kv = getattr(config, "num_key_value_heads", None) or heads
    seen: dict[str, Tensor] = {}
    names = family.qk_norm or family.qkv
    for name in names:
        attribute(layer, name).register_forward_hook(lambda m, i, y, name=name: seen.__setitem__(name, y.detach()))
    model.eval()(ids)
    if family.qk_norm:
        return seen[names[0]], seen[names[1]]
    if family.packed == "heads":
        packed = seen[names[0]].unflatten(-1, (heads, 3, -1))
        return packed[..., 0, :], packed[..., 1, :]
    if family.packed:
        packed = seen[names[0]].unflatten(-1, (heads + 2 * kv, -1))
        return packed[..., :heads, :], packed[..., heads : heads + kv, :]
    return seen[names[0]].unflatten(-1, (heads, -1)), seen[names[1]].unflatten(-1, (kv, -1))
