"""The moving average: its closed form, its ends, and bits that come back."""

from __future__ import annotations

import pytest
import torch

from longspan.updates import SlowWeights
from tests.updates.models import decoder, fill_gradients, weights


def walk(model: torch.nn.Module, step: int) -> None:
    fill_gradients(model, step)
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.01 * p.grad  # type: ignore[operator]


def test_the_average_has_its_closed_form() -> None:
    model, decay, steps = decoder(), 0.97, 100
    slow = SlowWeights(dict(model.named_parameters()), decay)
    expected = {name: x.double() * decay**steps for name, x in weights(model).items()}
    for step in range(1, steps + 1):
        walk(model, step)
        slow.update()
        for name, p in model.named_parameters():
            expected[name] += (1 - decay) * decay ** (steps - step) * p.detach().double()
    for name, value in slow.slow.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_ends_are_exact(dtype: torch.dtype) -> None:
    for decay in (0.0, 1.0):
        model = decoder().to(dtype)
        slow, first = SlowWeights(dict(model.named_parameters()), decay), weights(model)
        for step in range(4):
            walk(model, step)
            slow.update()
        for name, p in model.named_parameters():
            assert torch.equal(slow.slow[name], (first[name] if decay else p.detach()).float())


def test_weights_come_back_bit_for_bit_even_after_an_error() -> None:
    model = decoder()
    slow = SlowWeights(dict(model.named_parameters()), 0.5, every=3)
    for step in range(3):
        walk(model, step)
        slow.update()
    fast = weights(model)

    def fail() -> None:
        with slow.in_place():
            assert all(torch.equal(p, slow.slow[name]) for name, p in model.named_parameters())
            assert not all(torch.equal(p, fast[name]) for name, p in model.named_parameters())
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert all(torch.equal(p, fast[name]) for name, p in model.named_parameters())


def test_the_average_of_other_parameters_is_refused() -> None:
    named = dict(decoder().named_parameters())
    state = SlowWeights(named).state_dict()
    del named["norm.weight"]
    with pytest.raises(ValueError, match=r"of other parameters: norm\.weight"):
        SlowWeights(named).load_state_dict(state)
    with pytest.raises(ValueError, match="decay is 2"):
        SlowWeights(named, 2.0)
