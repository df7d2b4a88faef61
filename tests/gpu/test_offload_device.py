"""Offloading on a real GPU: the same step to the bit, and less memory: `make gpu`."""

from __future__ import annotations

import copy

import pytest
import torch

import longspan
from tests.patch.families import build, gradients, recipe, tokens

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("recompute", ["none", "mlp", "mlp+qkv", "layer"])
def test_a_step(recompute: str) -> None:
    assert torch.cuda.is_available(), "torch sees no GPU; these tests need one"
    length = 8192
    model = build("llama", num_hidden_layers=8, max_position_embeddings=length).train().cuda()
    found, peaks = [], []
    for offload in ("none", "cpu"):
        one = copy.deepcopy(model)
        longspan.patch(one, recipe(length, memory={"recompute": recompute, "offload": offload}))
        ids = tokens(1, length).cuda()
        for _ in range(2):
            torch.cuda.reset_peak_memory_stats()
            loss = one(input_ids=ids, labels=ids).loss
            loss.backward()
            found.append((loss.detach(), gradients(one)))
        peaks.append(torch.cuda.max_memory_allocated())
    for loss, values in found[1:]:
        assert torch.equal(loss, found[0][0])
        for name, value in values.items():
            assert torch.equal(value, found[0][1][name]), name
    assert peaks[1] < peaks[0]
