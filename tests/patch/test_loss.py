"""The loss without logits is transformers' loss: value, gradients, counting, and everything around it."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch

import longspan
from families import assert_as_good, build, double, gradients, recipe, tokens


def pair(family: str = "llama", **changes: Any) -> tuple[Any, Any]:
    """A patched model and its unpatched twin, in training mode."""
    model = build(family, **changes)
    twin = copy.deepcopy(model).train()
    longspan.patch(model.train(), recipe())
    return model, twin


def test_accumulation_with_num_items(family: str) -> None:
    """Batches divided by the number of labels of all of them give the gradient of the whole."""
    model, twin = pair(family)
    oracle = double(twin)
    first, second = tokens(1, 40, seed=1), tokens(1, 40, seed=2)
    labels = [first.clone(), second.clone()]
    labels[0][:, 5:30], labels[1][:, :7] = -100, -100
    count = sum(int((each[:, 1:] != -100).sum()) for each in labels)
    for each, items in ((model, torch.tensor(count)), (twin, count), (oracle, count)):
        for ids, wanted in zip((first, second), labels, strict=True):
            each(ids, labels=wanted, num_items_in_batch=items).loss.backward()
    given, baseline, exact = map(gradients, (model, twin, oracle))
    for name in given:
        assert_as_good(given[name], baseline[name], exact[name], eps=1e-5)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 3.0}),
        ("llama", {"tie_word_embeddings": True}),
        ("llama", {"tie_word_embeddings": False}),
        ("granite", {}),
        ("cohere", {}),
    ],
)
def test_what_follows_the_head(family: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Soft-caps, divisors, factors and tied heads."""
    import families

    glu = {**families._GLU, "pad_token_id": 0}
    scaled = {"granite": {"logits_scaling": 4.0, "residual_multiplier": 0.5}, "cohere": {"logit_scale": 0.25}}
    for name, options in scaled.items():
        classes = (f"{name.title()}Config", f"{name.title()}ForCausalLM", {**glu, **options})
        monkeypatch.setitem(families.FAMILIES, name, classes)
    model, twin = pair(family, **changes)
    ids, oracle = tokens(2, 33), double(twin)
    out, expected, exact = (each(ids, labels=ids).loss for each in (model, twin, oracle))
    for loss in (out, expected, exact):
        loss.backward()
    assert_as_good(out.detach(), expected.detach(), exact.detach())
    given, baseline, truth = map(gradients, (model, twin, oracle))
    for name in given:
        assert_as_good(given[name], baseline[name], truth[name], eps=1e-5)


def test_shifted_labels_and_custom_ignore_index() -> None:
    model, twin = pair()
    ids = tokens(2, 25)
    shifted = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=7)
    for each in (model, twin):
        each.losses = (
            each(ids, labels=ids, shift_labels=shifted).loss,
            each(ids, labels=ids, ignore_index=9).loss,
        )
    torch.testing.assert_close(model.losses, twin.losses)


def test_no_label_counts() -> None:
    """Nothing to learn from: the loss and all gradients are 0 (transformers: nan without a count)."""
    model, twin = pair()
    ids = tokens(1, 12)
    labels = torch.full_like(ids, -100)
    assert model(ids, labels=labels).loss == 0
    loss = model(ids, labels=labels, num_items_in_batch=5).loss
    assert loss == twin(ids, labels=labels, num_items_in_batch=5).loss == 0
    loss.backward()
    assert all(gradient.abs().max() == 0 for gradient in gradients(model).values())


def test_logits_when_they_are_wanted() -> None:
    """Logits come without labels, in evaluation, without gradients, and with logits_to_keep; else only the
    loss.
    """
    model, twin = pair()
    ids = tokens(1, 20)
    out = model(ids, labels=ids)
    assert out.logits is None
    assert out.loss.requires_grad
    torch.testing.assert_close(model(ids).logits, twin(ids).logits)
    torch.testing.assert_close(model(ids, labels=ids[:, -3:], logits_to_keep=3).logits.shape[1], 3)
    with torch.no_grad():
        assert model(ids, labels=ids).logits is not None
    model.eval()
    torch.testing.assert_close(model(ids, labels=ids).logits, twin.eval()(ids, labels=ids).logits)


def test_forms_of_calling() -> None:
    """Positional arguments, tuples, hidden states and caches are as before, logits aside."""
    model, twin = pair()
    ids, mask = tokens(2, 18), torch.ones(2, 18, dtype=torch.long)
    out = model(ids, mask, labels=ids, output_hidden_states=True, use_cache=True)
    expected = twin(ids, mask, labels=ids, output_hidden_states=True, use_cache=True)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.hidden_states, expected.hidden_states, rtol=1e-4, atol=1e-5)
    assert out.past_key_values.get_seq_length() == 18
    assert type(out) is type(expected)
    (loss,) = model(ids, labels=ids, use_cache=False, return_dict=False)
    torch.testing.assert_close(loss, out.loss)
    assert inspect.signature(model.forward) == inspect.signature(twin.forward)
    assert not hasattr(model.forward, "__wrapped__")


def test_wrong_label_shape_is_named() -> None:
    model, _ = pair()
    with pytest.raises(ValueError) as caught:
        model(tokens(1, 10), labels=tokens(1, 9))
    assert str(caught.value) == "labels are [1, 9] but the model scores [1, 10] tokens"


@pytest.mark.parametrize("lean", [{"loss": False}, {"keep_logits": True}])
def test_transformers_loss_on_request(lean: dict[str, bool]) -> None:
    model = build("llama")
    report = longspan.patch(model.train(), recipe(lean=lean))
    assert "forward" not in report.replaced
    assert "transformers computes the loss" in report.skipped["lean.loss"]
    ids = tokens(1, 10)
    assert model(ids, labels=ids).logits is not None


def test_a_forward_wrapped_later_survives_undo() -> None:
    """Mixed precision wraps the instance's forward again; undo leaves that wrapper on the stock forward."""
    model, twin = pair()
    model = build("llama").train()
    report = longspan.patch(model, recipe())
    ours = model.forward.__func__
    from types import MethodType

    def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    model.forward = MethodType(wrapped, model)
    ids = tokens(1, 10)
    assert model(ids, labels=ids).logits is None
    report.undo()
    assert model.forward.__func__ is wrapped
    assert torch.equal(model(ids, labels=ids).logits, twin(ids, labels=ids).logits)


def test_autocast() -> None:
    """Under bfloat16 autocast the loss is as close to float64 as transformers' is."""
    model, twin = pair()
    ids, exact = tokens(2, 40), double(twin)
    with torch.autocast("cpu", torch.bfloat16):
        given, baseline = model(ids, labels=ids).loss, twin(ids, labels=ids).loss
    assert_as_good(given.detach(), baseline.detach(), exact(ids, labels=ids).loss.detach(), eps=2e-3)
    given.backward()
    assert all(gradient.dtype == torch.float32 for gradient in gradients(model).values())
