"""Gradient masks: how many are kept, which, what the others do, and the norm that clips."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from longspan.updates import FusedAdamW, GradientMaskAdamW, GradientMaskSGD, GradientMaskTuning
from longspan.updates.layers import layer_of
from tests.updates.models import changed, decoder, fill_gradients, weights


@pytest.mark.parametrize("scope", ["tensor", "layer", "global"])
def test_each_scope_keeps_exactly_its_share_of_the_largest(scope: str) -> None:
    model, ratio = decoder(), 0.13
    before = weights(model)
    fill_gradients(model, 0)
    for number, p in enumerate(model.parameters()):  # so that scopes differ
        p.grad *= 1.5**number  # type: ignore[operator]
    GradientMaskSGD(model.named_parameters(), lr=1.0, keep_ratio=ratio, scope=scope).step()
    scopes: dict[object, list[str]] = {}
    for name in before:
        key = {"tensor": name, "layer": layer_of(name), "global": None}[scope]
        scopes.setdefault(key, []).append(name)
    moved, grads = changed(before, model), {name: p.grad for name, p in model.named_parameters()}
    for names in scopes.values():
        magnitudes = torch.cat([grads[name].flatten().abs() for name in names])  # type: ignore[union-attr]
        kept = torch.cat([moved[name].flatten() for name in names])
        wanted = max(1, math.floor(ratio * len(magnitudes)))
        assert kept.sum() == wanted
        assert magnitudes[kept].min() >= magnitudes[~kept].max()


@pytest.mark.parametrize("mode", ["grad", "update", "freeze"])
def test_keeping_everything_is_the_plain_optimizer_bit_for_bit(mode: str) -> None:
    plain, masked, nearly = decoder(), decoder(), decoder()
    optimizers = [
        FusedAdamW(plain.parameters(), 1e-2, weight_decay=0.1, clip=1.0),
        GradientMaskAdamW(masked.parameters(), 1e-2, 1.0, mode, weight_decay=0.1, clip=1.0),
        # A ratio that rounds down to all but one element is no exemption, so thresholds decide.
        GradientMaskAdamW(nearly.parameters(), 1e-2, 1 - 1e-9, mode, weight_decay=0.1, clip=1.0),
    ]
    for step in range(10):
        for model, optimizer in zip((plain, masked, nearly), optimizers, strict=True):
            fill_gradients(model, step)
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), masked.parameters(), strict=True))
    different = sum(int((a != b).sum()) for a, b in zip(plain.parameters(), nearly.parameters(), strict=True))
    assert different > 0


def test_frozen_elements_keep_every_bit_and_a_group_may_be_exempt() -> None:
    model = decoder()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices}, {"params": vectors, "keep_ratio": 1.0}]
    optimizer = GradientMaskAdamW(groups, 1e-2, 0.2, "freeze", weight_decay=0.1)
    before = weights(model)
    fill_gradients(model, 0)
    optimizer.step()
    for p, moved in zip(model.parameters(), changed(before, model).values(), strict=True):
        wanted = p.numel() if p.dim() == 1 else int(0.2 * p.numel())
        assert moved.sum() == wanted
        assert (optimizer.state[p]["exp_avg"] != 0).sum() == wanted


def test_the_norm_that_clips_is_that_of_the_masked_gradient() -> None:
    for clip_on in ("masked", "dense"):
        model = decoder()
        fill_gradients(model, 0)
        before = weights(model)
        optimizer = GradientMaskSGD(model.parameters(), lr=1.0, keep_ratio=0.2, clip=0.5, clip_on=clip_on)
        squares = [p.grad.double().square().flatten() for p in model.parameters()]  # type: ignore[union-attr]
        kept = [
            x.sort(descending=True).values[: max(1, int(0.2 * len(x)))] if clip_on == "masked" else x for x in squares
        ]
        norm = torch.cat(kept).sum().sqrt()
        torch.testing.assert_close(optimizer.prepare(), norm, rtol=1e-6, atol=0)
        optimizer.step()
        moved = torch.cat([(p - before[name]).detach().double().flatten() for name, p in model.named_parameters()])
        if clip_on == "masked":
            assert float(moved.norm()) == pytest.approx(0.5, rel=1e-4)
        else:
            assert float(moved.norm()) < 0.5


def test_the_mask_is_of_the_accumulated_gradient() -> None:
    weight = nn.Parameter(torch.zeros(2))
    optimizer = GradientMaskSGD([weight], lr=1.0, keep_ratio=0.5)
    for micro in ([3.0, 2.0], [-2.5, 2.0]):
        (weight * torch.tensor(micro) / 2).sum().backward()
    optimizer.step()
    assert weight.tolist() == [0.0, -2.0]  # masks of the parts would let 2 / 2 pass


def test_scaling_a_gradient_by_a_power_of_two_keeps_the_mask_and_zeros_never_pass() -> None:
    kept = []
    for scale in (1.0, 2.0**-30, 2.0**20):
        weight = nn.Parameter(torch.zeros(1000))
        weight.grad = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * scale
        weight.grad[:900] = 0
        GradientMaskSGD([weight], lr=1.0, keep_ratio=0.5).step()
        kept.append(weight.detach() != 0)
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[0], kept[2])
    assert kept[0].sum() == 100


@pytest.mark.parametrize(("ratio", "share"), [(0.1, 0.81), (0.2, 0.72), (0.5, 0.45)])
def test_most_of_a_masked_adamw_step_is_momentum(ratio: float, share: float) -> None:
    weight = nn.Parameter(torch.zeros(4096))
    optimizer = GradientMaskAdamW([weight], 1e-3, ratio, weight_decay=0.0)
    generator, parts = torch.Generator().manual_seed(0), [0.0, 0.0]
    for step in range(600):
        gradient = torch.randn(4096, generator=generator)
        before = weight.detach().clone()
        weight.grad = gradient
        optimizer.step()
        if step >= 300:
            moved = (weight.detach() - before).abs()
            kept = torch.zeros(4096, dtype=torch.bool)
            kept[gradient.abs().topk(int(ratio * 4096)).indices] = True
            parts[0] += float(moved[~kept].sum())
            parts[1] += float(moved.sum())
    assert parts[0] / parts[1] == pytest.approx(share, abs=0.02)


def test_layers_by_name() -> None:
    names = ["model.layers.3.mlp.up_proj.weight", "base_model.model.model.layers.12.q.lora_A.weight", "h.0.attn.weight"]
    assert [layer_of(name) for name in names] == [3, 12, 0]
    assert layer_of("model.embed_tokens.weight") is None


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_equal_gradients_of_several_tensors_are_told_apart_in_their_order(scope: str) -> None:
    named = {f"layers.0.{name}.weight": nn.Parameter(torch.zeros(40)) for name in ("a", "b", "c")}
    for p in named.values():
        p.grad = torch.ones(40)
    GradientMaskSGD(named.items(), lr=1.0, keep_ratio=0.5, scope=scope).step()
    assert [int((p != 0).sum()) for p in named.values()] == [40, 20, 0]


def test_vectors_embeddings_and_the_head_are_exempt_in_a_recipe() -> None:
    exempt = {"model.layers.0.input_layernorm.weight": 1, "model.embed_tokens.weight": 2, "lm_head.weight": 2}
    masked = {"model.layers.0.mlp.up_proj.weight": 2, "base_model.model.lm_head.lora_A.weight": 2}
    for names, ratio in ((exempt, {"keep_ratio": 1.0}), (masked, {})):
        for name, dimensions in names.items():
            parameter = nn.Parameter(torch.zeros([2] * dimensions))
            assert GradientMaskTuning().group_of(name, parameter) == ratio, name
            assert GradientMaskTuning(exempt=False).group_of(name, parameter) == {}


def test_permuting_elements_permutes_what_moves() -> None:
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    results: list[Tensor] = []
    for permuted in (False, True):
        weight = nn.Parameter(torch.zeros(500))
        gradient = torch.randn(500, generator=torch.Generator().manual_seed(1))
        weight.grad = gradient[order] if permuted else gradient
        GradientMaskSGD([weight], lr=1.0, keep_ratio=0.3).step()
        results.append(weight.detach())
    assert torch.equal(results[0][order], results[1])
