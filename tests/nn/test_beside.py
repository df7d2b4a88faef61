"""Modules beside a model's own: out of its state dict, never narrow, saved and put back whole."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from longspan.nn.beside import beside_parameters, beside_tensors, check_beside, take_beside
from longspan.nn.codebook import Codebook
from longspan.nn.router import Router


def model() -> Any:
    torch.manual_seed(0)
    whole = nn.ModuleDict({"plain": nn.Linear(8, 8), "inner": nn.Sequential(nn.Linear(8, 8), Codebook(2, 8, 2, 4))})
    whole["router"] = Router(8, 4)
    whole["inner"][1].fit(torch.randn(1, 2, 40, 8))
    return whole


def test_state_dicts_do_not_know_them() -> None:
    whole = model()
    assert set(whole.state_dict()) == {"plain.weight", "plain.bias", "inner.0.weight", "inner.0.bias"}
    before = beside_tensors(whole)
    whole.load_state_dict({name: x + 1 for name, x in whole.state_dict().items()}, strict=True)
    assert all(torch.equal(before[name], x) for name, x in beside_tensors(whole).items())
    assert {id(p) for p in beside_parameters(whole)} == {
        id(whole["inner"][1].weight),
        id(whole["router"].weight),
        id(whole["router"].bias),
    }


def test_they_stay_as_wide_as_float32() -> None:
    whole, before = model(), beside_tensors(model())
    whole.to(torch.bfloat16)
    assert whole["plain"].weight.dtype == torch.bfloat16
    assert all(torch.equal(before[name], x) for name, x in beside_tensors(whole).items())
    whole.double()
    assert whole["inner"][1].weight.dtype == whole["router"].weight.dtype == torch.float64
    assert whole["inner"][1].idle.dtype == torch.int32


def test_put_back_whole_or_not_at_all() -> None:
    whole = model()
    kept = beside_tensors(whole)
    other = model()
    for parameter in beside_parameters(other):
        parameter.data.zero_()
    other["inner"][1].forget()
    take_beside(other, kept)
    assert other["inner"][1].fitted
    assert all(torch.equal(kept[name], x) for name, x in beside_tensors(other).items())
    name = "router.weight"
    for wrong, message in (
        ({n: x for n, x in kept.items() if n != name}, "tensor router.weight is missing"),
        (kept | {name: kept[name][:2]}, r"tensor router.weight is \[2, 8\], the model's is \[4, 8\]"),
        (kept | {"gone.weight": kept[name]}, "tensor gone.weight is of a module that this model lacks"),
    ):
        with pytest.raises(ValueError, match=message):
            check_beside(other, wrong, "file")


def test_copies_have_their_own() -> None:
    whole = model()
    twin = copy.deepcopy(whole)
    twin["inner"][1].forget()
    assert whole["inner"][1].fitted
    assert whole["inner"][1].weight.abs().sum() > 0
