"""The fused optimizers: torch's steps, state dicts, dtypes, and steps that must not happen."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from longspan.updates import FusedAdamW, FusedSGD, GradientClip, GradientMaskAdamW, GradientMaskSGD
from tests.updates.models import decoder, fill_gradients, weights

ADAMW = {"lr": 1e-2, "weight_decay": 0.1}
Make = Callable[[nn.Module], Any]
MAKERS: dict[str, Make] = {
    "adamw": lambda m: FusedAdamW(m.named_parameters(), **ADAMW, clip=1.0),
    "sgd": lambda m: FusedSGD(m.named_parameters(), lr=0.1, momentum=0.9, weight_decay=0.1, clip=1.0),
    "masked adamw": lambda m: GradientMaskAdamW(m.named_parameters(), **ADAMW, clip=1.0),
    "frozen by layer": lambda m: GradientMaskAdamW(m.named_parameters(), 1e-2, 0.3, "freeze", scope="layer"),
    "masked sgd": lambda m: GradientMaskSGD(m.named_parameters(), lr=0.1, momentum=0.9),
    "components": lambda m: FusedAdamW(m.named_parameters(), **ADAMW, clip=GradientClip(0.1, "module")),
}


def run(model: nn.Module, optimizer: Any, steps: range, scale: float = 1.0) -> None:
    for step in steps:
        fill_gradients(model, step, scale)
        optimizer.step()


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_steps_are_those_of_torch(name: str, clip: float | None) -> None:
    ours, theirs = decoder(), decoder()
    if name == "adamw":
        optimizer: Any = FusedAdamW(ours.parameters(), **ADAMW, clip=clip)
        plain: Any = torch.optim.AdamW(theirs.parameters(), **ADAMW)
    else:
        options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}
        optimizer, plain = (
            FusedSGD(ours.parameters(), **options, clip=clip),
            torch.optim.SGD(theirs.parameters(), **options),
        )
    for step in range(10):
        for model in (ours, theirs):
            fill_gradients(model, step)
        optimizer.step()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip)
        plain.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", MAKERS)
def test_a_saved_and_loaded_optimizer_goes_on_bit_for_bit(name: str, dtype: torch.dtype) -> None:
    whole, first, second = decoder().to(dtype), decoder().to(dtype), decoder(seed=7).to(dtype)
    run(whole, MAKERS[name](whole), range(6))
    optimizer = MAKERS[name](first)
    run(first, optimizer, range(3))
    file = io.BytesIO()
    torch.save([first.state_dict(), optimizer.state_dict()], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second.load_state_dict(saved[0])
    loaded = MAKERS[name](second)
    loaded.load_state_dict(saved[1])
    run(second, loaded, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))
    assert all(x.dtype == torch.float32 for state in loaded.state.values() for x in state.values())


def test_the_state_of_another_method_is_refused() -> None:
    model = decoder()
    saved = FusedAdamW(model.parameters()).state_dict()
    with pytest.raises(ValueError, match=r"the saved optimizer is .*FusedAdamW.*; this one is .*GradientMaskAdamW"):
        GradientMaskAdamW(model.parameters()).load_state_dict(saved)
    masked = GradientMaskAdamW(model.parameters()).state_dict()
    with pytest.raises(ValueError, match="freeze"):
        GradientMaskAdamW(model.parameters(), mode="freeze").load_state_dict(masked)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", MAKERS)
def test_a_gradient_that_is_not_finite_changes_nothing_but_gradients(name: str, value: float) -> None:
    model = decoder()
    optimizer = MAKERS[name](model)
    optimizer.clear_gradients = True
    run(model, optimizer, range(2))
    before = weights(model)
    state = [x.clone() for each in optimizer.state.values() for x in each.values()]
    fill_gradients(model, 5)
    model.norm.weight.grad[3] = value  # type: ignore[union-attr, index]
    assert not optimizer.prepare().isfinite()
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    now = [x for each in optimizer.state.values() for x in each.values()]
    assert all(torch.equal(a, b) for a, b in zip(state, now, strict=True))
    assert not any(p.grad.any() for p in model.parameters())


def test_bfloat16_with_masters_loses_no_small_step_and_rounds_the_master() -> None:
    model = nn.Linear(4, 4, bias=False).bfloat16()
    nn.init.ones_(model.weight)
    optimizer = FusedSGD(model.parameters(), lr=1e-3)
    for _ in range(32):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    master = optimizer.state[model.weight]["master"]
    torch.testing.assert_close(master, torch.full((4, 4), 0.968), rtol=0, atol=1e-5)
    assert torch.equal(model.weight, master.bfloat16())


def test_stochastic_rounding_moves_on_average_and_nearest_does_not() -> None:
    moved = {}
    for rounding in ("stochastic", "nearest"):
        model = nn.Linear(256, 256, bias=False).bfloat16()
        nn.init.ones_(model.weight)
        optimizer = FusedSGD(model.parameters(), lr=2.0**-11, rounding=rounding)
        for _ in range(8):
            model.weight.grad = -torch.ones_like(model.weight)
            optimizer.step()
        moved[rounding] = float((model.weight.detach().double() - 1).mean())
    assert moved["nearest"] == 0
    assert moved["stochastic"] == pytest.approx(8 * 2.0**-11, rel=0.05)


def test_parameters_without_a_gradient_stay_and_groups_keep_their_numbers() -> None:
    model = decoder()
    optimizer = FusedAdamW(
        [{"params": [model.norm.weight], "lr": 0.0}, {"params": [model.embed_tokens.weight]}], lr=0.1
    )  # type: ignore[union-attr]
    before = weights(model)
    model.norm.weight.grad = torch.ones(16)  # type: ignore[union-attr]
    optimizer.step()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    model.embed_tokens.weight.grad = torch.ones(32, 16)  # type: ignore[union-attr]
    optimizer.step()
    assert not torch.equal(model.embed_tokens.weight, before["embed_tokens.weight"])  # type: ignore[union-attr, arg-type]
    assert [group["step"] for group in optimizer.param_groups] == [2, 1]


def test_a_step_allocates_nothing_of_the_size_of_the_weights() -> None:
    from longspan.memory import measure

    model = nn.Linear(1024, 1024, bias=False)
    optimizer = GradientMaskAdamW(model.parameters(), clip=1.0)
    model.weight.grad = torch.randn(1024, 1024)
    optimizer.step()
    with measure() as m:
        optimizer.step()
    assert m.peak_bytes < 1 << 20


def test_mistakes_are_named() -> None:
    model = decoder()
    sparse = nn.Embedding(4, 4, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    for call, message in (
        (
            lambda: GradientMaskAdamW(model.parameters(), keep_ratio=0.0),
            "keep_ratio is 0.0; it is the share",
        ),
        (lambda: GradientMaskAdamW(model.parameters(), mode="skip"), "unknown mode 'skip'"),
        (lambda: GradientMaskAdamW(model.parameters(), scope="layer"), "give model.named_parameters()"),
        (lambda: FusedAdamW(model.parameters(), clip=0.0), "max_norm is 0.0; it must be above 0"),
        (lambda: FusedAdamW(model.parameters(), lr=-1.0), "must not be negative"),
        (lambda: FusedAdamW(model.parameters(), rounding="up"), "unknown rounding 'up'"),
        (lambda: FusedSGD(sparse.parameters()).step(), "is sparse; dense ones are stepped"),
        (
            lambda: GradientMaskAdamW(model.named_parameters(), scope="global", clip=GradientClip(1.0, "tensor")),
            "masks rank within global",
        ),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert message in str(error.value)
