"""Product-quantised attention in patched models: the limit of all keys, its loss, its steps, its companions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import longspan
from families import assert_all_as_good, build, double, gradients, recipe, tokens
from longspan import ops
from longspan.memory import measure
from longspan.nn.codebook import Codebook
from longspan.patch.backend import Call
from longspan.patch.pq import BOOK, PQAttend
from longspan.patch.steps import steps_of

FORMS = ["mask", "list", "block"]
SCORERS = ["adc", "match"]
LENGTH = 200


def method(**changes: Any) -> dict[str, Any]:
    return {"method": "pq", "codewords": 8, "refresh_every": 3} | changes


def patched(family: str = "llama", length: int = LENGTH, phases: tuple[str, ...] = ("train",), **changes: Any) -> Any:
    model = build(family, max_position_embeddings=256)
    asked = method(**changes)
    longspan.patch(model, recipe(length, attention=dict.fromkeys(phases, asked)))
    return model


def books(model: nn.Module) -> list[Codebook]:
    return [module for module in model.modules() if isinstance(module, Codebook)]


def step(model: Any, ids: Tensor, **inputs: Any) -> tuple[float, dict[str, Tensor]]:
    model.train()
    loss = model(ids, labels=ids, use_cache=False, **inputs).loss
    loss.backward()
    return float(loss), gradients(model)


def without_books(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: gradient for name, gradient in found.items() if BOOK not in name}


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("form", FORMS)
def test_a_budget_of_all_keys_is_full_attention(family: str, form: str, scorer: str) -> None:
    ids = tokens(2, 100)
    stock, oracle = build(family), double(build(family))
    model = build(family)
    longspan.patch(model, recipe(100, attention={"train": method(form=form, scorer=scorer, keep_ratio=1.0)}))
    given, baseline, right = step(model, ids), step(stock, ids), step(oracle, ids)
    assert abs(given[0] - right[0]) <= 2 * abs(baseline[0] - right[0]) + 2e-6 * right[0]
    assert_all_as_good(without_books(given[1]), baseline[1], right[1])


@pytest.mark.parametrize("scorer", SCORERS)
def test_lists_and_masks_keep_the_same_keys(scorer: str) -> None:
    ids, found = tokens(2, LENGTH), []
    for form in ("mask", "list"):
        model = patched(form=form, scorer=scorer).double()
        found.append(step(model, ids))
    (loss, one), (other, two) = found
    assert loss == pytest.approx(other, rel=1e-12)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-8, atol=1e-10)


def attended(model: Any, ids: Tensor) -> list[tuple[Tensor, ...]]:
    """What the attention of every layer chose: q, k, call and codes."""
    calls: list[tuple[Any, ...]] = []
    original = PQAttend.attend

    def spy(self: PQAttend, module: Any, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        out = original(self, module, q, k, v, call)
        calls.append((self, module, q.detach(), k.detach(), v.detach(), call, out.detach()))
        return out

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(PQAttend, "attend", spy)
        step(model, ids)
    return calls


@pytest.mark.parametrize(("form", "scorer"), [(form, scorer) for form in FORMS for scorer in SCORERS])
def test_only_kept_keys_are_attended_to(form: str, scorer: str) -> None:
    """Against a mask made from the definition: sorted scores of unpacked codes."""
    model = patched(form=form, scorer=scorer, keep_ratio=0.3, length=256 if form == "block" else LENGTH).double()
    for asked, module, q, k, v, _, out in attended(model, tokens(1, LENGTH)):
        book = getattr(module, BOOK)
        mask = torch.zeros(q.shape[1], LENGTH, LENGTH, dtype=torch.bool)
        scores = _scores(scorer, book, q, k)
        for head in range(q.shape[1]):
            for row in range(LENGTH):
                mask[head, row] = _kept(asked, scores[head], row) if form != "block" else False
        if form == "block":
            mask = _kept_blocks(asked, scores, k.shape[1])
        mask &= torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        weights = q[0] @ k[0].repeat_interleave(q.shape[1] // k.shape[1], 0).mT * module.scaling
        expected = weights.masked_fill(~mask, -torch.inf).softmax(-1) @ v[0].repeat_interleave(2, 0)
        torch.testing.assert_close(out[0], expected)


def _scores(scorer: str, book: Codebook, q: Tensor, k: Tensor) -> Tensor:
    """Integers [H,T,S]."""
    _, pieces, words, _ = book.weight.shape
    keys = ops.unpack_codes(book.encode(k), pieces, words)[0].repeat_interleave(q.shape[1] // k.shape[1], 0)
    if scorer == "match":
        queries = ops.unpack_codes(book.encode(q), pieces, words)[0]
        return (queries[:, :, None] == keys[:, None]).sum(-1)
    table = ops.adc_table(q, book.weight)[0].long()
    length = q.shape[2]
    return sum(table[:, :, piece].gather(2, keys[:, None, :, piece].expand(-1, length, -1)) for piece in range(pieces))  # type: ignore[return-value]


def _kept(asked: PQAttend, scores: Tensor, row: int) -> Tensor:
    near = [j for j in range(row + 1) if j < asked.first or row - j < asked.recent]
    rest = sorted((j for j in range(row + 1) if j not in near), key=lambda j: (int(scores[row, j]), j), reverse=True)
    kept = near + rest[: max(0, asked.budget - len(near))]
    return torch.zeros(scores.shape[1], dtype=torch.bool).index_fill(0, torch.tensor(kept), True)


def _kept_blocks(asked: PQAttend, scores: Tensor, key_heads: int) -> Tensor:
    heads, length, _ = scores.shape
    blocks, grouped = -(-length // 64), scores.unflatten(0, (key_heads, -1)).sum(1)
    mask = torch.zeros(heads, length, length, dtype=torch.bool)
    for head in range(heads):
        for row in range(blocks):
            here = grouped[head * key_heads // heads, row * 64 : row * 64 + 64]
            sums = [int(here[:, j * 64 : j * 64 + 64].sum()) for j in range(row + 1)]
            near = [j for j in range(row + 1) if j < asked.first or row - j < asked.recent]
            rest = sorted((j for j in range(row + 1) if j not in near), key=lambda j: (sums[j], j), reverse=True)
            for j in (near + rest)[: max(asked.budget, 0)]:
                mask[head, row * 64 : row * 64 + 64, j * 64 : j * 64 + 64] = True
    return mask


@pytest.mark.parametrize("recompute", ["mlp", "mlp+qkv", "layer"])
@pytest.mark.parametrize("form", FORMS)
def test_a_recomputed_choice_is_the_stored_one(form: str, recompute: str) -> None:
    ids, found = tokens(2, LENGTH), []
    for again in ("none", recompute):
        model = build("llama", max_position_embeddings=256)
        longspan.patch(model, recipe(LENGTH, attention={"train": method(form=form)}, memory={"recompute": again}))
        if again == "layer":
            model.gradient_checkpointing_enable({"use_reentrant": False})
        found.append([step(model, ids) for _ in range(2)])
    for (loss, one), (other, two) in zip(*found, strict=True):
        assert loss == other
        assert one.keys() == two.keys()
        for name, gradient in one.items():
            torch.testing.assert_close(gradient, two[name], rtol=1e-5, atol=1e-7)


def test_packed_documents_are_separate() -> None:
    lengths = [90, 1, 109]
    model = patched(keep_ratio=0.1).double()
    rows = [tokens(1, n, seed=n) for n in lengths]
    model.train()
    with torch.no_grad():
        model.model(torch.cat(rows, 1))  # finds codewords
        borders = torch.tensor([0, *lengths]).cumsum(0).int()
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        named = {"cu_seq_lens_q": borders, "cu_seq_lens_k": borders, "max_length_q": 109, "max_length_k": 109}
        joined = model.model(torch.cat(rows, 1), position_ids=positions, **named).last_hidden_state
        alone = [model.model(row).last_hidden_state for row in rows]
    torch.testing.assert_close(joined, torch.cat(alone, 1))


def test_padding_changes_nothing() -> None:
    model = patched(keep_ratio=0.1).double()
    ids = tokens(1, 150)
    padded = torch.cat([torch.zeros(1, 50, dtype=torch.int64), ids], 1)
    mask = (torch.arange(200) >= 50)[None].long()
    model.train()
    with torch.no_grad():
        alone = model.model(ids).last_hidden_state
        given = model.model(padded, attention_mask=mask, position_ids=(torch.arange(200) - 50).clamp(min=0)[None])
    torch.testing.assert_close(given.last_hidden_state[:, 50:], alone)


def test_evaluation_is_dense_unless_asked() -> None:
    ids = tokens(1, LENGTH)
    model, stock = patched(), build("llama", max_position_embeddings=256)
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-4, atol=1e-4)
        assert not any(book.fitted for book in books(model))
        sparse = patched(phases=("train", "prefill"))
        assert (sparse(ids).logits - stock(ids).logits).abs().max() > 1e-2
        assert all(book.fitted for book in books(sparse))


def test_a_prompt_in_pieces_is_the_whole_prompt() -> None:
    """Thresholds look at all keys, so that a cache changes nothing once codewords are there."""
    model = patched(phases=("train", "prefill"), keep_ratio=0.1).double()
    ids = tokens(1, 160)
    with torch.no_grad():
        whole = model(ids).logits
        first = model(ids[:, :100], use_cache=True)
        second = model(ids[:, 100:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), whole)


@pytest.mark.parametrize("scorer", SCORERS)
def test_the_codebook_has_the_gradient_of_its_loss_in_its_steps(scorer: str) -> None:
    model = patched(scorer=scorer).double()
    for number in range(5):
        calls = attended(model, tokens(1, LENGTH, seed=number))
        steps_of(model.model).forwards -= 1  # the same one again
        _, found = step(model, tokens(1, LENGTH, seed=number))
        for index, (_, module, q, k, *_rest) in enumerate(calls):
            book = getattr(module, BOOK)
            name = next(n for n in found if n.startswith(f"model.layers.{index}.") and BOOK in n)
            copied = copy.deepcopy(book)
            total = sum(copied.loss(z, copied.encode(z)) for z in ([k] if scorer == "adc" else [q, k]))
            (expected,) = torch.autograd.grad(total, copied.weight)
            due = steps_of(model.model).step % 3 == 0
            torch.testing.assert_close(found[name], 0.01 * expected if due else expected * 0)


def test_its_loss_bends_no_query_or_key_unless_asked() -> None:
    ids, found = tokens(1, LENGTH), {}
    for weight, commit in ((0.0, False), (5.0, False), (5.0, True)):
        model = patched(loss_weight=weight, commit=commit).double()
        found[weight, commit] = without_books(step(model, ids)[1])
    plain = found[0.0, False]
    for name, gradient in plain.items():
        assert torch.equal(gradient, found[5.0, False][name]), name
    moved = [name for name, gradient in plain.items() if not torch.equal(gradient, found[5.0, True][name])]
    assert any("k_proj" in name for name in moved)
    assert not any("lm_head" in name for name in moved)


def test_a_step_of_micro_batches_counts_the_loss_once() -> None:
    ids = tokens(2, LENGTH)
    whole, parts = (patched().double() for _ in range(2))
    for model in (whole, parts):
        with torch.no_grad():
            model.train()(ids)  # the same codewords
    items = 2 * (LENGTH - 1)
    for model in (whole, parts):
        steps_of(model.model).forwards = -1
    steps_of(parts.model).accumulate = 2
    _, one = step(whole, ids, num_items_in_batch=items)
    parts.train()
    for row in ids:
        parts(row[None], labels=row[None], num_items_in_batch=items, use_cache=False).loss.backward()
    two = gradients(parts)
    for name, gradient in one.items():
        torch.testing.assert_close(gradient, two[name], rtol=1e-6, atol=1e-9)
    assert steps_of(whole.model).step == steps_of(parts.model).step == 0


def test_a_scaled_loss_scales_the_codebooks() -> None:
    ids, found = tokens(1, LENGTH), []
    for scale in (1.0, 8.0):
        model = patched().double().train()
        (model(ids, labels=ids, use_cache=False).loss * scale).backward()
        found.append(gradients(model))
    for name, gradient in found[0].items():
        torch.testing.assert_close(8 * gradient, found[1][name])


def test_the_codebook_changes_only_at_its_time() -> None:
    """Two forwards before a backward, and recomputed layers, leave it alone."""
    model = build("llama", max_position_embeddings=256)
    longspan.patch(model, recipe(LENGTH, attention={"train": method(refresh_every=1)}))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    losses = [model(tokens(1, LENGTH, seed=n), labels=tokens(1, LENGTH, seed=n), use_cache=False).loss for n in (0, 1)]
    before = [book.weight.detach().clone() for book in books(model)]
    counts = [book.idle.clone() for book in books(model)]
    sum(losses).backward()
    for book, weight, idle in zip(books(model), before, counts, strict=True):
        assert torch.equal(book.weight, weight)
        assert torch.equal(book.idle, idle)
    assert all(book.weight.grad.abs().sum() > 0 for book in books(model))


def alive(length: int, attention: dict[str, Any]) -> int:
    """Bytes that live between forward and backward of a step outside of the codebooks' times."""
    model: Any = build("llama", max_position_embeddings=1024).train().requires_grad_(False)
    longspan.patch(model, recipe(length, attention={"train": attention}))
    embeddings = model.get_input_embeddings()(tokens(1, length)).requires_grad_()
    inputs = {"inputs_embeds": embeddings, "labels": tokens(1, length), "use_cache": False}
    model(**inputs).loss.backward()
    with measure() as live:
        loss = model(**inputs).loss
    assert loss.requires_grad
    return live.end_bytes


@pytest.mark.parametrize("scorer", SCORERS)
def test_form_mask_saves_a_few_bytes_a_token_for_any_budget(scorer: str) -> None:
    heads, kv_heads, layers, found = 4, 2, 2, {}
    for length in (256, 512, 1024):
        dense = alive(length, {"method": "full"})
        for ratio in (0.125, 0.25):
            asked = method(scorer=scorer, keep_ratio=ratio, refresh_every=100)
            found[length, ratio] = alive(length, asked) - dense
        assert found[length, 0.125] == found[length, 0.25]
        words = 1  # two subspaces of 4 bits
        allowed = layers * (heads * length * (4 * words + 9) + kv_heads * length * 4 * words)
        codebooks = layers * 4096
        assert 0 < found[length, 0.125] <= allowed + codebooks
    growth = found[1024, 0.125] - found[512, 0.125]
    assert growth == pytest.approx(2 * (found[512, 0.125] - found[256, 0.125]), rel=0.05)


def test_undo_and_copies() -> None:
    model = build("llama", max_position_embeddings=256)
    names = set(model.state_dict())
    report = longspan.patch(model, recipe(LENGTH, attention={"train": method()}))
    assert "pq(adc, form=mask, 25 keys, sinks=4)" in str(report)
    assert set(model.state_dict()) == names
    twin = copy.deepcopy(model)
    step(twin, tokens(1, LENGTH))
    assert all(book.fitted for book in books(twin))
    assert not any(book.fitted for book in books(model))
    assert steps_of(twin.model).forwards == 0
    assert steps_of(model.model).forwards == -1
    report.undo()
    longspan.patch.unpatch(twin)
    for one in (model, twin):
        assert not books(one)
        assert steps_of(one.model) is None
        assert not one.model._forward_pre_hooks


def test_a_model_cast_after_the_patch_keeps_its_codebooks_wide() -> None:
    model = patched().to(torch.bfloat16)
    step(model, tokens(1, LENGTH))
    assert {book.weight.dtype for book in books(model)} == {torch.float32}


def test_what_is_refused() -> None:
    model = patched()
    with pytest.raises(Exception, match="attention pq needs eager mode"):
        torch.compile(model.train(), backend="eager", fullgraph=True)(tokens(1, LENGTH))
    with pytest.raises(ValueError, match="share codebooks; scorer, subspaces and codewords must be equal"):
        longspan.patch(build("llama"), recipe(96, attention={"train": method(), "prefill": method(codewords=16)}))
    with pytest.raises(ValueError, match=r"attention.train: a window of 20 and 4 sinks are more than the 20 keys"):
        longspan.patch(build("llama"), recipe(160, attention={"train": method(window=1.0)}))
    broken = build("llama")
    with pytest.raises(ValueError, match="subspaces is 40; a head of 16 components has 1 to 16"):
        longspan.patch(broken, recipe(96, attention={"train": method(subspaces=40)}))
    assert not books(broken)
    assert steps_of(broken.model) is None
