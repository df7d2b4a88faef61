"""Norms of components: bounds, directions, and the ends that are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from longspan.updates import FusedAdamW, FusedSGD, GradientClip
from tests.updates.models import decoder, fill_gradients, weights


def steps_of(clip: GradientClip | None) -> dict[str, torch.Tensor]:
    """What gradient descent with rate 1 moves."""
    model = decoder()
    before = weights(model)
    fill_gradients(model, 0)
    FusedSGD(model.named_parameters(), lr=1.0, clip=clip).step()
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("component", ["tensor", "module", "layer", "all"])
def test_every_component_stays_within_its_bound_and_keeps_its_direction(component: str) -> None:
    whole, clipped, bound = steps_of(None), steps_of(GradientClip(0.5, component)), 0.5
    groups: dict[str, list[str]] = {}
    for name in whole:
        parts = name.split(".")
        layer = ".".join(parts[:2]) if parts[0] == "layers" else name.rpartition(".")[0]
        key = {"tensor": name, "module": name.rpartition(".")[0], "layer": layer, "all": ""}[component]
        groups.setdefault(key, []).append(name)
    for names in groups.values():
        old, new = (torch.cat([x[name].flatten().double() for name in names]) for x in (whole, clipped))
        assert new.norm() <= bound * (1 + 1e-5)
        assert new.norm() >= bound * (1 - 1e-4)
        assert torch.cosine_similarity(old, new, dim=0) > 1 - 1e-6


def test_bounds_by_size_grow_with_the_root_of_the_elements() -> None:
    for name, step in steps_of(GradientClip(0.01, "tensor", by_size=True)).items():
        assert float(step.norm()) == pytest.approx(0.01 * math.sqrt(step.numel()), rel=1e-4), name


def test_no_bound_is_no_clipping_bit_for_bit() -> None:
    results = []
    for clip in (None, GradientClip(math.inf), GradientClip(math.inf, "tensor")):
        model = decoder()
        optimizer = FusedAdamW(model.named_parameters(), 1e-2, clip=clip)
        for step in range(4):
            fill_gradients(model, step)
            optimizer.step()
        results.append(list(model.parameters()))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_parameters_in_several_groups_have_their_own_factors() -> None:
    results = []
    for split in (False, True):
        model = decoder()
        named = list(model.named_parameters())
        for number, (_, p) in enumerate(named):
            p.grad = torch.full_like(p, 0.1 * (1 + number))
        groups = [{"params": named[::2]}, {"params": named[1::2]}] if split else [{"params": named}]
        FusedSGD(groups, lr=1.0, clip=GradientClip(0.5, "tensor")).step()
        results.append(list(model.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_all_as_one_component_is_the_clipping_of_torch() -> None:
    model = decoder()
    fill_gradients(model, 0)
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    clipped = [p.grad.clone() for p in model.parameters()]  # type: ignore[union-attr]
    model = decoder()
    fill_gradients(model, 0)
    optimizer = FusedSGD(model.parameters(), lr=1.0, clip=0.5)
    before = list(weights(model).values())
    torch.testing.assert_close(optimizer.prepare(), expected.double(), rtol=1e-6, atol=0)
    optimizer.step()
    for old, p, grad in zip(before, model.parameters(), clipped, strict=True):
        torch.testing.assert_close(old - p, grad, rtol=1e-5, atol=1e-6)


def test_gradients_whose_squares_overflow_float32_are_clipped() -> None:
    """Finite gradients have a finite norm: sums are float64."""
    parameter = nn.Parameter(torch.zeros(16))
    parameter.grad = torch.full((16,), 1e30)
    optimizer = FusedSGD([parameter], lr=1.0, clip=1.0)
    norm = optimizer.prepare()
    assert norm is not None
    assert norm.item() == pytest.approx(4e30)
    optimizer.step()
    assert parameter.norm().item() == pytest.approx(1.0)
