"""What must hold of linear maps with adapters, bit for bit where it can: identities, masks, threads, memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longspan.ops import Norm, Projection, layer_norm, lora_linear, norm_lora_linear, rms_norm
from longspan.ops.reference.lora import dropout_mask
from longspan.ops.reference.philox import philox
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit
from tests.ops.lora_cases import CASES, F32, F64, Problem, mask_of, philox4x32

BF16 = torch.bfloat16
SEEDS = [0, 1, 2**32, 2**63 - 1, -1, -(2**63), 0x299F31D0A4093822]


def without_adapters(problem: Problem, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    bare = replace(problem, ranks=(0,) * len(problem.N), dropout=0.0)
    return bare.call({n: x for n, x in tensors.items() if not n.startswith("lora")})


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", ["bias", "rank 33", "odd sizes", "deep", "layer group", "rms group", "many rows"])
def test_a_fresh_adapter_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    """B = 0: y is that of the map alone and dA is 0, while dB is what it is for any other B."""
    problem = CASES[name]
    tensors = problem.tensors(dtype)
    fresh = {n: torch.zeros_like(x) if n.startswith("lora_b") else x for n, x in tensors.items()}
    bare, got, trained = without_adapters(problem, tensors), problem.run(fresh), problem.run(tensors)
    for i, y in enumerate(bare):
        assert torch.equal(got[f"y{i}"], y)
        if problem.ranks[i]:
            assert (got[f"dlora_a{i}"] == 0).all()
            assert got[f"dlora_b{i}"].abs().min() > 0
            assert torch.equal(got[f"dlora_b{i}"], trained[f"dlora_b{i}"])


@pytest.mark.parametrize("c", [2.0**-7, 4.0, 2.0**20])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", ["bias", "everything", "group dropout"])
def test_scaling_and_b_are_one_factor(name: str, dtype: torch.dtype, c: float) -> None:
    problem = CASES[name]
    tensors = problem.tensors(dtype)
    divided = {n: x / c if n.startswith("lora_b") else x for n, x in tensors.items()}
    one, other = problem.run(tensors), replace(problem, scaling=problem.scaling * c).run(divided)
    for n, value in one.items():
        assert torch.equal(value * c if n.startswith("dlora_b") else value, other[n]), n


@pytest.mark.parametrize("name", ["group", "group dropout", "layer group", "rms group", "many rows", "many plain rows"])
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
def test_a_group_equals_separate_calls(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    tensors = problem.tensors(dtype)
    ys = problem.call(tensors)
    norm = Norm(tensors.get("norm_weight"), tensors.get("norm_bias"), problem.norm, problem.eps, problem.weight_offset)
    for i, y in enumerate(ys):
        parts = {n[:-1]: x for n, x in tensors.items() if n.endswith(str(i))}
        options: dict[str, Any] = {"dropout_p": problem.dropout, "seed": problem.seeds[i : i + 1]}
        (alone,) = norm_lora_linear(
            tensors["x"],
            [Projection(**parts, scaling=problem.scalings[i])],
            norm if problem.normed else None,
            **options,
        )
        assert torch.equal(y, alone)
        if not problem.normed:
            residual = parts.pop("residual", None)
            assert torch.equal(
                y, lora_linear(tensors["x"], **parts, scaling=problem.scalings[i], residual=residual, **options)
            )


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", ["rms", "layer", "rms group", "layer group", "no norm weight", "many rows"])
def test_a_norm_inside_equals_the_norm_before(name: str, dtype: torch.dtype) -> None:
    """y bit for bit, gradients within the bound of the two ops one after the other."""
    problem = CASES[name]
    tensors = problem.tensors(dtype)
    leaves = {n: x.clone().requires_grad_() for n, x in tensors.items()}
    x, weight, bias = (leaves.get(n) for n in ("x", "norm_weight", "norm_bias"))
    assert x is not None
    if problem.norm == "rms":
        z = rms_norm(x, weight, eps=problem.eps, weight_offset=problem.weight_offset)
    else:
        z = layer_norm(x, weight, bias, eps=problem.eps)
    ys = replace(problem, norm="none").call({**leaves, "x": z})
    torch.autograd.backward(ys, problem.upstream(dtype))
    got, exact = problem.run(tensors), problem.oracle(tensors, F64)
    for i, y in enumerate(ys):
        assert torch.equal(got[f"y{i}"], y)
    for n, leaf in leaves.items():
        assert leaf.grad is not None
        if dtype != F64:
            assert_error_bound(n, got[f"d{n}"], leaf.grad, exact[f"d{n}"], BACKWARD)
        else:
            torch.testing.assert_close(got[f"d{n}"], leaf.grad, rtol=1e-10, atol=1e-12)


def test_a_change_of_basis_within_the_rank_changes_nothing() -> None:
    problem = Problem(T=20, C=40, ranks=(6,))
    tensors = problem.tensors(F64)
    turn = torch.randn(6, 6, dtype=F64, generator=torch.Generator().manual_seed(0)) + 3 * torch.eye(6, dtype=F64)
    turned = {**tensors, "lora_a0": turn @ tensors["lora_a0"], "lora_b0": tensors["lora_b0"] @ turn.inverse()}
    torch.testing.assert_close(problem.call(turned), problem.call(tensors), rtol=1e-12, atol=1e-12)


def test_merged_equals_unmerged() -> None:
    problem = CASES["bias"]
    tensors = problem.tensors(F32)
    merged = {n: x for n, x in tensors.items() if not n.startswith("lora")}
    merged["weight0"] = tensors["weight0"] + problem.scaling * tensors["lora_b0"] @ tensors["lora_a0"]
    (y,), (expected,) = problem.call(tensors), replace(problem, ranks=(0,)).call(merged)
    assert_error_bound("y", y, expected, problem.oracle(tensors, F64)["y0"], FORWARD)


# The published known answers of Random123 (kat_vectors, philox4x32 10): counter, key, words.
KNOWN = {
    "00000000 00000000 00000000 00000000 00000000 00000000": "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    "ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff": "408f276d 41c83b0e a20bc7c6 6d5451fd",
    "243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0": "d16cfe09 94fdcceb 5001e420 24126ea1",
}


@pytest.mark.parametrize("given", KNOWN)
def test_philox_gives_the_published_words(given: str) -> None:
    words = np.array([[int(word, 16) for word in given.split()]], np.uint64)
    found = philox4x32(words[:, :4], words[:, 4:])[0]
    assert " ".join(f"{word:08x}" for word in found) == KNOWN[given]


def test_the_reference_philox_is_that_one() -> None:
    rng = np.random.default_rng(0)
    counters = np.concatenate([rng.integers(0, 2**32, (200, 4)), np.zeros((1, 4), int), np.full((1, 4), 2**32 - 1)])
    for seed in SEEDS:
        key = np.tile(np.array([seed % 2**32, seed % 2**64 // 2**32], np.uint64), (len(counters), 1))
        found = torch.stack(philox(torch.from_numpy(counters).unbind(1), seed), 1).numpy()
        assert np.array_equal(found.astype(np.uint64), philox4x32(counters, key)), seed


def masks_of_the_op(seed: int, rows: int, columns: int, p: float, dtype: torch.dtype = F32) -> tuple[Tensor, Tensor]:
    """The mask of the forward and that of the backward: A and dy are such that they come out as they are."""
    x = torch.ones(rows, columns, dtype=dtype)
    nothing, one = torch.zeros(1, columns, dtype=dtype), torch.eye(columns, dtype=dtype)
    forward = lora_linear(x, torch.zeros(columns, columns, dtype=dtype), None, one, one, 1.0, p, seed)
    found = []
    for row in range(rows):  # dA = ds^T (x . D), with ds one-hot over rows
        a = nothing.clone().requires_grad_()
        y = lora_linear(x, torch.zeros(1, columns, dtype=dtype), None, a, torch.ones(1, 1, dtype=dtype), 1.0, p, seed)
        y[row].sum().backward()
        assert a.grad is not None
        found.append(a.grad)
    return forward, torch.cat(found)


@pytest.mark.parametrize("p", [0.05, 0.5, 0.999])
@pytest.mark.parametrize("seed", SEEDS)
def test_forward_and_backward_use_the_documented_mask(seed: int, p: float) -> None:
    rows, columns = 7, 37
    expected = torch.from_numpy(mask_of(seed, rows, columns, p))
    assert torch.equal(dropout_mask(seed, rows, columns, p), expected)
    for mask in masks_of_the_op(seed, rows, columns, p, F64):
        assert torch.equal(mask, expected)
    for mask in masks_of_the_op(seed, rows, columns, p):
        assert torch.equal(mask, expected.float())


def test_the_gradient_of_the_input_uses_the_mask_too() -> None:
    rows, columns, p, seed = 70, 41, 0.3, 2**40 + 1
    x = torch.zeros(rows, columns, requires_grad=True)
    a = b = torch.eye(columns)
    lora_linear(x, torch.zeros(columns, columns), None, a, b, 1.0, p, seed).sum().backward()
    assert torch.equal(x.grad, torch.from_numpy(mask_of(seed, rows, columns, p)).float())


@pytest.mark.parametrize("p", [0.05, 0.3, 0.9])
def test_the_keep_rate_is_within_four_sigma(p: float) -> None:
    rows, columns = 500, 200
    identity = torch.eye(columns)
    kept = lora_linear(torch.ones(rows, columns), torch.zeros_like(identity), None, identity, identity, 1.0, p, 5) != 0
    sigma = (p * (1 - p) / kept.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - p)) < 4 * sigma
    assert (kept.double().mean(0) - (1 - p)).abs().max() < 6 * sigma * columns**0.5
    assert (kept.double().mean(1) - (1 - p)).abs().max() < 6 * sigma * rows**0.5


def test_masks_of_projections_and_seeds_differ() -> None:
    columns = 64
    x, nothing, one = torch.ones(30, columns), torch.zeros(columns, columns), torch.eye(columns)
    group = [Projection(nothing, lora_a=one, lora_b=one)] * 2
    first, second = norm_lora_linear(x, group, dropout_p=0.5, seed=torch.tensor([3, 4]))
    again, same = norm_lora_linear(x, group, dropout_p=0.5, seed=torch.tensor([3, 3]))
    assert torch.equal(first, again)
    assert torch.equal(again, same)
    agree = (first == second).double().mean().item()
    assert abs(agree - 0.5) < 4 * 0.5 / (30 * columns) ** 0.5


def test_without_a_seed_torchs_generator_gives_one() -> None:
    problem = Problem(T=20)
    x, weight, a, b = (problem.tensors(F32)[n] for n in ("x", "weight0", "lora_a0", "lora_b0"))

    def call() -> Tensor:
        return lora_linear(x, weight, None, a, b, 1.0, 0.5)

    torch.manual_seed(1)
    first, second = call(), call()
    torch.manual_seed(1)
    assert torch.equal(first, call())
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    lora_linear(x, weight, None, a, b)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["odd sizes", "layer group"])
def test_recomputation_makes_the_same_mask(name: str) -> None:
    problem = CASES[name]

    def function(*values: Tensor) -> Tensor:
        tensors = dict(zip(names, values, strict=True))
        projections = [
            Projection(tensors[f"weight{i}"], None, tensors.get(f"lora_a{i}"), tensors.get(f"lora_b{i}"))
            for i in range(len(problem.N))
        ]
        return torch.cat(norm_lora_linear(tensors["x"], projections, dropout_p=0.5), -1)

    names, results = list(problem.tensors(F32)), []
    for plain in (True, False):
        leaves = [x.requires_grad_() for x in problem.tensors(F32).values()]
        torch.manual_seed(4)
        y = function(*leaves) if plain else checkpoint(function, *leaves, use_reentrant=False)
        y.square().sum().backward()
        results.append([y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)])
    for kept, made_again in zip(*results, strict=True):
        assert torch.equal(kept, made_again)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", ["adapter", "dropout", "layer group", "many rows", "many plain rows"])
def test_a_row_does_not_depend_on_the_rows_behind_it(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    tensors = problem.tensors(dtype)
    whole = problem.call(tensors)
    for rows in (1, 5, problem.T // 2 + 1, problem.T - 1):
        cut = {n: x[:rows] if n == "x" or n.startswith("residual") else x for n, x in tensors.items()}
        for y, part in zip(whole, problem.call(cut), strict=True):
            assert torch.equal(y[:rows], part)


def test_without_dropout_rows_are_independent() -> None:
    problem = replace(CASES["layer group"], dropout=0.0)
    tensors = problem.tensors(F32)
    order = torch.randperm(problem.T, generator=torch.Generator().manual_seed(0))
    moved = {n: x[order] if n == "x" or n.startswith("residual") else x for n, x in tensors.items()}
    for y, permuted in zip(problem.call(tensors), problem.call(moved), strict=True):
        assert torch.equal(y[order], permuted)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("name", ["rank 33", "wide", "layer group", "many rows", "many plain rows"])
def test_thread_count_changes_no_bit(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    assert_threads_change_no_bit(lambda: problem.run(problem.tensors(dtype)))


def test_a_graph_of_the_gradient_is_refused() -> None:
    problem = CASES["adapter"]
    leaves = {n: x.requires_grad_() for n, x in problem.tensors(F32).items()}
    for call in (problem.call, replace(problem, norm="rms", norm_weight=False).call):
        with pytest.raises(RuntimeError, match="differentiable once"):
            torch.autograd.grad(call(leaves)[0].sum(), leaves["lora_a0"], create_graph=True)
