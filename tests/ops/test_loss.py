"""The segmented loss against the float64 reference: error bound, gradients, schema, compilation, laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from longspan.ops import segment_linear_cross_entropy
from longspan.ops.reference.loss import segment_linear_cross_entropy as reference
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
DTYPES = (F32, F64, BF16)
IGNORED = -100


def inputs(T: int, C: int, V: int, dtype: torch.dtype = F32, *, keep: float = 0.7, seed: int = 0) -> dict[str, Tensor]:
    """hidden [T,C], weight [V,C], bias [V], labels [T] with a share `keep` that counts, token_weights [T]."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, V, (T,), generator=g)
    labels[torch.rand(T, generator=g) >= keep] = IGNORED
    return {
        "hidden": torch.randn(T, C, generator=g, dtype=F64).to(dtype),
        "weight": torch.randn(V, C, generator=g, dtype=F64).to(dtype),
        "bias": torch.randn(V, generator=g, dtype=F64).to(dtype),
        "labels": labels,
        "token_weights": torch.randn(T, generator=g, dtype=F64 if dtype == F64 else F32),
    }


def run(
    function: Any, x: dict[str, Tensor], dtype: torch.dtype, *, drop: tuple[str, ...] = (), **options: Any
) -> dict[str, Tensor]:
    """Loss and gradients, with an arbitrary gradient of the loss."""
    leaves = {n: x[n].detach().to(dtype).requires_grad_() for n in ("hidden", "weight", "bias") if n not in drop}
    weights = {} if "token_weights" in drop else {"token_weights": x["token_weights"]}
    loss = function(leaves["hidden"], leaves["weight"], x["labels"], bias=leaves.get("bias"), **weights, **options)
    upstream = torch.linspace(-1.5, 2.0, loss.numel(), dtype=F64).reshape(loss.shape).to(loss.dtype)
    (loss * upstream).sum().backward()
    return {"loss": loss.detach(), **{n: leaf.grad for n, leaf in leaves.items() if leaf.grad is not None}}


def assert_close(x: dict[str, Tensor], dtype: torch.dtype, *, segment: int = 2048, **options: Any) -> None:
    got = run(segment_linear_cross_entropy, x, dtype, segment=segment, **options)
    exact = run(reference, x, F64, **options)
    rounded = run(reference, x, F32 if dtype == F64 else dtype, **options)
    assert got.keys() == exact.keys()
    for name, value in got.items():
        assert value.dtype == (dtype if name != "loss" else torch.promote_types(dtype, F32))
        if name == "loss" and value.dim() == 0:
            # A sum of signed losses is as exact as its terms, not as its value.
            terms = run(reference, x, F64, **{**options, "reduction": "none", "num_items": None})["loss"]
            count = exact["loss"] / terms.sum() if terms.sum() else 0
            allowed = 8 * torch.finfo(value.dtype).eps * (terms.abs().sum() * abs(count) + exact["loss"].abs())
            assert abs(value.double() - exact["loss"]) <= allowed + 2 * abs(rounded["loss"].double() - exact["loss"])
            continue
        factor = FORWARD if name == "loss" else BACKWARD
        assert_error_bound(name, value, rounded[name], exact[name], factor)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"drop": ("bias", "token_weights")},
    "bias": {"drop": ("token_weights",)},
    "token weights": {"drop": ("bias",)},
    "soft-cap": {"logit_softcap": 5.0},
    "scale": {"logit_scale": 0.25},
    "scale and soft-cap": {"logit_softcap": 30.0, "logit_scale": 3.0, "drop": ("bias",)},
    "num_items": {"num_items": 1234.0},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", OPTIONS)
def test_error_bound(name: str, reduction: str, dtype: torch.dtype) -> None:
    options = {k: v for k, v in OPTIONS[name].items() if k != "num_items" or reduction == "mean"}
    assert_close(inputs(150, 48, 1003, dtype), dtype, segment=40, reduction=reduction, **options)


@settings(max_examples=40)
@given(
    T=st.integers(0, 80),
    C=st.integers(1, 50),
    V=st.one_of(st.integers(1, 70), st.integers(500, 1100)),
    keep=st.sampled_from([0.0, 0.1, 1.0]),
    segment=st.sampled_from([1, 5, 32, 2048]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    cap=st.sampled_from([None, 4.0]),
)
def test_any_problem(T: int, C: int, V: int, keep: float, segment: int, reduction: str, cap: float | None) -> None:
    x = inputs(T, C, V, F64, keep=keep)
    assert_close(x, F64, segment=segment, reduction=reduction, logit_softcap=cap)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("options", [{}, {"logit_softcap": 2.0, "logit_scale": 0.5}], ids=["plain", "soft-cap"])
def test_gradcheck(options: dict[str, float], reduction: str) -> None:
    x = inputs(7, 5, 11, F64)
    leaves = tuple(x[n].requires_grad_() for n in ("hidden", "weight", "bias"))

    def function(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return segment_linear_cross_entropy(
            hidden,
            weight,
            x["labels"],
            bias=bias,
            token_weights=x["token_weights"],
            segment=3,
            reduction=reduction,
            **options,
        )

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["sum", "rows", "recompute", "hidden only"])
def test_opcheck(mode: str, dtype: torch.dtype) -> None:
    x = inputs(20, 8, 33, dtype)
    hidden, weight, bias = (
        x[n].requires_grad_(mode != "hidden only" or n == "hidden") for n in ("hidden", "weight", "bias")
    )
    needs = {"sum": (True, True, True), "hidden only": (True, False, False)}.get(mode, (False, False, False))
    arguments = (hidden, weight, bias, x["labels"], x["token_weights"], 7, IGNORED, 1.0, 3.0, mode == "rows", *needs)
    opcheck(torch.ops.longspan.linear_cross_entropy.default, arguments)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_compiles_without_breaks(reduction: str) -> None:
    x = inputs(30, 16, 101)

    def function(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return segment_linear_cross_entropy(hidden * 2, weight, labels, reduction=reduction, segment=8)

    results = []
    for call in (function, torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)):
        hidden, weight = (x[n].clone().requires_grad_() for n in ("hidden", "weight"))
        loss = call(hidden, weight, x["labels"])
        (loss * torch.arange(1.0, loss.numel() + 1).reshape(loss.shape)).sum().backward()
        results.append((loss.detach(), hidden.grad, weight.grad))
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)


def test_mean_is_torchs_mean() -> None:
    x = inputs(90, 20, 301)
    logits = x["hidden"].double() @ x["weight"].double().T
    expected = nn.functional.cross_entropy(logits, x["labels"])
    assert segment_linear_cross_entropy(x["hidden"], x["weight"], x["labels"]) == pytest.approx(
        expected.item(), rel=1e-6
    )
    weighted = segment_linear_cross_entropy(
        x["hidden"], x["weight"], x["labels"], token_weights=torch.full((90,), -2.0)
    )
    assert weighted == pytest.approx(-2 * expected.item(), rel=1e-6)  # divided by the count, not by the weights


@pytest.mark.parametrize("kind", [int, float, torch.tensor])
def test_num_items_makes_micro_batches_add_up_to_the_exact_mean(kind: Any) -> None:
    x = inputs(90, 20, 301, keep=0.4)
    items = kind(int((x["labels"] != IGNORED).sum()))
    whole_hidden, whole_weight = (x[n].clone().requires_grad_() for n in ("hidden", "weight"))
    whole = segment_linear_cross_entropy(whole_hidden, whole_weight, x["labels"])
    whole.backward()
    weight, total, grads = x["weight"].clone().requires_grad_(), 0.0, []
    for part in (slice(0, 13), slice(13, 14), slice(14, 90)):
        hidden = x["hidden"][part].clone().requires_grad_()
        loss = segment_linear_cross_entropy(hidden, weight, x["labels"][part], num_items=items)
        loss.backward()
        total += loss.item()
        grads.append(hidden.grad)
    assert total == pytest.approx(whole.item(), rel=1e-6)
    torch.testing.assert_close(torch.cat(grads), whole_hidden.grad, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(weight.grad, whole_weight.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("T", [0, 1, 40])
def test_nothing_to_count_is_zero_with_zero_gradients(T: int, reduction: str) -> None:
    x = inputs(T, 8, 30, keep=0.0)
    got = run(segment_linear_cross_entropy, x, F32, reduction=reduction)
    assert all((value == 0).all() for value in got.values())
    assert got["hidden"].shape == (T, 8)
    items = {"num_items": torch.tensor(0)} if reduction == "mean" else {}
    assert (
        segment_linear_cross_entropy(x["hidden"], x["weight"], x["labels"], reduction=reduction, **items) == 0
    ).all()


def test_shapes_strides_and_label_types() -> None:
    x = inputs(24, 10, 50)
    flat = segment_linear_cross_entropy(x["hidden"], x["weight"], x["labels"], reduction="none")
    batched = segment_linear_cross_entropy(
        x["hidden"].reshape(2, 3, 4, 10), x["weight"], x["labels"].int().reshape(2, 3, 4), reduction="none"
    )
    assert batched.shape == (2, 3, 4)
    assert torch.equal(flat, batched.flatten())
    strided = segment_linear_cross_entropy(
        x["hidden"].T.contiguous().T, torch.cat([x["weight"]] * 2, 1)[:, :10], x["labels"], reduction="none"
    )
    assert torch.equal(flat, strided)


def test_only_what_requires_grad_gets_a_gradient() -> None:
    x = inputs(20, 8, 30)
    for name in ("hidden", "weight", "bias"):
        leaves = {n: x[n].clone().requires_grad_(n == name) for n in ("hidden", "weight", "bias")}
        for reduction in ("mean", "none"):
            loss = segment_linear_cross_entropy(
                leaves["hidden"], leaves["weight"], x["labels"], bias=leaves["bias"], reduction=reduction
            )
            loss.sum().backward()
        assert [n for n, leaf in leaves.items() if leaf.grad is not None] == [name]
    with torch.no_grad():
        assert not segment_linear_cross_entropy(leaves["hidden"], leaves["weight"], x["labels"]).requires_grad


def test_backward_twice_gives_the_same_and_a_graph_of_it_is_refused() -> None:
    x = inputs(20, 8, 30)
    hidden = x["hidden"].requires_grad_()
    loss = segment_linear_cross_entropy(hidden, x["weight"], x["labels"])
    first, second = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.autograd.grad(3 * loss, hidden, retain_graph=True)[0], 3 * first)
    assert torch.equal(torch.autograd.grad(loss, hidden, retain_graph=True)[0], first)
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(loss, hidden, create_graph=True)


class Tied(nn.Module):
    """Embedding, one layer, and a head that is the embedding again."""

    def __init__(self, V: int, C: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(V, C)
        self.layer = nn.Linear(C, C)

    def forward(self, tokens: Tensor, loss: Any) -> Tensor:
        hidden = torch.tanh(self.layer(self.embedding(tokens[:-1])))
        return loss(hidden, self.embedding.weight, tokens[1:])


def test_tied_embeddings_get_both_gradients() -> None:
    torch.manual_seed(0)
    model, tokens = Tied(40, 12).double(), torch.randint(0, 40, (30,))
    gradients = []
    for loss in (segment_linear_cross_entropy, reference):
        model.zero_grad()
        model(tokens, loss).backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hidden_dtype", [F32, BF16])
def test_autocast_casts_as_linear_does(hidden_dtype: torch.dtype) -> None:
    x = inputs(40, 16, 200)
    hidden, weight = x["hidden"].to(hidden_dtype).requires_grad_(), x["weight"].requires_grad_()
    with torch.autocast("cpu", dtype=BF16):
        loss = segment_linear_cross_entropy(hidden, weight, x["labels"])
    loss.backward()
    assert loss.dtype == F32
    assert (hidden.grad.dtype, weight.grad.dtype) == (hidden_dtype, F32)
    h, w = (t.detach().bfloat16().requires_grad_() for t in (hidden, weight))
    plain = segment_linear_cross_entropy(h, w, x["labels"])
    plain.backward()
    assert torch.equal(plain, loss)
    assert torch.equal(w.grad.float(), weight.grad)
    assert torch.equal(h.grad.to(hidden_dtype), hidden.grad)


def test_thread_count_changes_no_bit() -> None:
    x = inputs(130, 40, 1001)
    assert_threads_change_no_bit(lambda: run(segment_linear_cross_entropy, x, F32, segment=32))


def test_segment_changes_only_rounding() -> None:
    x = inputs(100, 24, 301)
    whole = run(segment_linear_cross_entropy, x, F32, segment=1000)
    for segment in (1, 33, 64):
        cut = run(segment_linear_cross_entropy, x, F32, segment=segment)
        assert torch.equal(cut["loss"], whole["loss"])
        assert torch.equal(cut["hidden"], whole["hidden"])
        torch.testing.assert_close(cut["weight"], whole["weight"], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(cut["bias"], whole["bias"], rtol=1e-5, atol=1e-6)
