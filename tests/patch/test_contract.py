"""What holds for every family: a patched model is the model, as exactly as PyTorch's own attention is."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import longspan
from families import assert_as_good, build, double, gradients, recipe, tokens


def pair(family: str, **attention: Any) -> tuple[Any, Any]:
    """A patched model and its unpatched twin."""
    model = build(family)
    twin = copy.deepcopy(model)
    longspan.patch(model, recipe(attention=attention))
    return model, twin


def test_logits(family: str) -> None:
    model, twin = pair(family)
    ids = tokens(2, 70)
    with torch.no_grad():
        assert_as_good(model(ids).logits, twin(ids).logits, double(twin)(ids).logits)


def test_loss_and_gradients(family: str) -> None:
    model, twin = pair(family)
    ids, oracle = tokens(2, 70), double(twin)
    labels = ids.masked_fill(torch.arange(70) % 5 == 0, -100)
    losses = []
    for each in (model, twin, oracle):
        each.train()
        losses.append(each(ids, labels=labels).loss)
        losses[-1].backward()
    assert_as_good(*(loss.detach() for loss in losses))
    given, baseline, exact = map(gradients, (model, twin, oracle))
    assert given.keys() == baseline.keys() == exact.keys()
    for name in given:
        assert_as_good(given[name], baseline[name], exact[name], eps=1e-5)


def _separately(model: Any, ids: Tensor, lengths: list[int], positions: Tensor) -> Tensor:
    parts = zip(ids[0].split(lengths), positions[0].split(lengths), strict=True)
    with torch.no_grad():
        return torch.cat([model(i[None], position_ids=p[None], use_cache=False).logits for i, p in parts], 1)


@pytest.mark.parametrize("route", ["positions", "positions_with_cache", "boundaries"])
def test_packed_equals_separate(family: str, route: str) -> None:
    """Documents do not see each other, however the boundaries are told."""
    model, twin = pair(family)
    lengths = [23, 1, 30, 17]
    ids = tokens(1, sum(lengths))
    restarting = torch.cat([torch.arange(n) for n in lengths])[None]
    # With explicit boundaries positions may run on; nothing else then shows where a document starts.
    positions = torch.arange(sum(lengths))[None] if route == "boundaries" else restarting
    options: dict[str, Any] = {"use_cache": route == "positions_with_cache", "position_ids": positions}
    if route == "boundaries":
        borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
        options |= {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": 30, "max_length_k": 30}
    with torch.no_grad():
        packed = model(ids, **options).logits
    baseline, exact = (_separately(each, ids, lengths, positions) for each in (twin, double(twin)))
    assert_as_good(packed, baseline, exact)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding(family: str, side: str) -> None:
    """A padded row scores as the row alone, in evaluation and in training, and its gradient too."""
    model, twin = pair(family)
    lengths, width = [40, 27, 3], 40
    rows = [tokens(1, n, seed=n) for n in lengths]
    ids, mask = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(0, row.shape[1]) if side == "right" else slice(width - row.shape[1], width)
        ids[i, place], mask[i, place] = row, 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            logits = model(ids, attention_mask=mask, position_ids=positions).logits
            for i, row in enumerate(rows):
                exact = double(twin)(row).logits[0]
                assert_as_good(logits[i][mask[i].bool()], twin(row).logits[0], exact)
    # What a padding row would predict is undefined: the first token of a row is nobody's label.
    labels = ids.masked_fill(positions * mask == 0, -100)
    for each in (model, twin.train()):
        each(ids, attention_mask=mask, position_ids=positions, labels=labels).loss.backward()
    given, expected = gradients(model), gradients(twin)
    for name in given:
        torch.testing.assert_close(given[name], expected[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generate(family: str, cache: str | None) -> None:
    """Greedy tokens are the unpatched model's, also beyond a window and with padding on the left."""
    model, twin = pair(family)
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    ids[0, :6], mask[0, :6] = 0, 0
    options = {"attention_mask": mask, "max_new_tokens": 14, "do_sample": False, "cache_implementation": cache}
    assert torch.equal(model.generate(ids, **options), twin.generate(ids, **options))


def test_prefill_in_chunks(family: str) -> None:
    """Prompt pieces after a cache score as the whole prompt."""
    model, twin = pair(family)
    ids = tokens(2, 41)
    with torch.no_grad():
        whole, exact = twin(ids).logits, double(twin)(ids).logits
        past, parts = None, []
        for piece in ids.split([17, 1, 23], dim=1):
            out = model(piece, past_key_values=past, use_cache=True)
            past = out.past_key_values
            parts.append(out.logits)
    assert_as_good(torch.cat(parts, 1), whole, exact)


def _state(model: Any) -> dict[str, Any]:
    """Everything that a patch may touch: attributes by module, hooks, and the identity of configs."""
    return {
        name: (
            sorted(module.__dict__),
            list(module._forward_hooks.values()),
            id(module.__dict__.get("config")),
            getattr(module.__dict__.get("config"), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    }


def test_undo_is_exact(family: str) -> None:
    model = build(family).train()
    next(model.children()).training = False  # an unusual flag must survive too
    ids = tokens(2, 33)
    flags = {name: module.training for name, module in model.named_modules()}
    before, logits = _state(model), model(ids).logits
    report = longspan.patch(model, recipe())
    assert flags == {name: module.training for name, module in model.named_modules()}
    assert _state(model) != before
    model(ids, labels=ids).loss.backward()
    report.undo()
    report.undo()
    assert _state(model) == before
    assert torch.equal(model(ids).logits, logits)
    longspan.patch(model, recipe()).undo()
    assert _state(model) == before


def test_deepcopy_is_another_model(family: str) -> None:
    """A copy runs its own weights, keeps its patch when the original loses it, and can be restored itself."""
    model, twin = pair(family)
    other = copy.deepcopy(model).train()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.25)
        for parameter in twin.parameters():
            parameter.mul_(1.25)
    ids = tokens(1, 30)
    expected = twin.train()(ids, labels=ids)
    from longspan.patch import unpatch

    unpatch(model)
    out = other(ids, labels=ids)
    assert out.logits is None
    torch.testing.assert_close(out.loss, expected.loss, rtol=1e-4, atol=1e-5)
    unpatch(other)
    assert torch.equal(other(ids).logits, expected.logits)


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(family: str, reentrant: bool) -> None:
    model, _ = pair(family, train={"method": "s2", "group_size": 16, "sinks": 2})
    model.train()
    ids = tokens(1, 50)
    model(ids, labels=ids).loss.backward()
    plain = gradients(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model(ids, labels=ids).loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, plain[name], rtol=0, atol=0)
