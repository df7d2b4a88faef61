"""LoRALinear against torch's linear layer and its own definition: merging, checkpoints, adapters in another dtype."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from longspan.nn import LoRALinear


def layer(dtype: torch.dtype = torch.float32, **options: object) -> LoRALinear:
    torch.manual_seed(0)
    made = LoRALinear(24, 40, 4, 6.0, dtype=dtype, **options)  # type: ignore[arg-type]
    nn.init.normal_(made.lora_b, std=0.3)
    return made


def rows(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


def test_a_new_layer_is_its_linear_layer_and_only_the_adapter_trains() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(24, 40)
    made = LoRALinear.from_linear(linear, rank=3)
    assert made.weight is linear.weight
    plain = torch.nn.functional.linear(rows(), linear.weight, linear.bias)
    torch.testing.assert_close(made(rows()), plain)
    made(rows()).sum().backward()
    assert {name for name, p in made.named_parameters() if p.grad is not None} == {"lora_a", "lora_b"}
    assert made.weight.grad is None


@pytest.mark.parametrize("rank_stabilized", [False, True])
def test_definition(rank_stabilized: bool) -> None:
    made = layer(torch.float64, rank_stabilized=rank_stabilized)
    scaling = 6.0 / (4**0.5 if rank_stabilized else 4)
    x, residual = rows(torch.float64), torch.randn(2, 5, 40, dtype=torch.float64)
    bias = made.bias
    assert bias is not None
    expected = x @ (made.weight + scaling * made.lora_b @ made.lora_a).T + bias + residual
    torch.testing.assert_close(made(x, residual), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_merge_and_unmerge_restore_every_bit(dtype: torch.dtype) -> None:
    made = layer(dtype, adapter_dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        made.weight.mul_(torch.logspace(-6, 6, 40)[:, None].to(dtype))  # rows that a difference would not restore
    before, y = made.weight.detach().clone(), made(rows(dtype))
    for _ in range(3):
        made.merge()
        made.merge()
        assert made.merged
        assert not torch.equal(made.weight, before)
        made.unmerge()
        made.unmerge()
        assert torch.equal(made.weight, before)
    assert torch.equal(made(rows(dtype)), y)


def test_a_merged_layer_scores_the_same_without_its_adapter() -> None:
    made = layer(torch.float64)
    y = made(rows(torch.float64))
    made.merge()
    with torch.no_grad():
        torch.testing.assert_close(made(rows(torch.float64)), y)
        made.lora_b.zero_()
        torch.testing.assert_close(made(rows(torch.float64)), y)


def test_a_checkpoint_of_a_merged_layer_does_not_hold_the_adapter_twice() -> None:
    made = layer()
    y, plain = made(rows()), made.state_dict()
    weight = plain["weight"].clone()
    made.merge()
    file = io.BytesIO()
    torch.save(made.state_dict(), file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    assert saved.keys() == plain.keys()
    assert torch.equal(saved["weight"], weight)
    other = layer()
    nn.init.normal_(other.lora_b)
    other.merge()
    other.load_state_dict(saved)
    assert not other.merged
    assert torch.equal(other(rows()), y)


def test_a_merged_layer_moves_and_copies_with_what_it_keeps() -> None:
    made = layer()
    before = made.weight.detach().clone()
    made.merge()
    other = copy.deepcopy(made).double()
    other.unmerge()
    assert torch.equal(other.weight, before.double())
    assert made.merged


def test_dropout_is_for_training() -> None:
    made = layer(dropout=0.5)
    assert not torch.equal(made(rows()), made(rows()))
    made.eval()
    assert torch.equal(made(rows()), made(rows()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "LoRALinear: rank is 0; allowed: 1 to 256"),
        ({"rank": 257}, "LoRALinear: rank is 257; allowed: 1 to 256"),
        ({"dropout": 1.0}, "LoRALinear: dropout is 1.0; it must be at least 0 and below 1"),
    ],
)
def test_bad_input(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as error:
        LoRALinear(4, 4, **options)  # type: ignore[arg-type]
    assert str(error.value) == message
