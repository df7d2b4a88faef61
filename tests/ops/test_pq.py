"""The product quantiser against its definition: codes to the bit, the loss by the error law, k-means, bad input."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from longspan.memory import measure
from longspan.ops import pq_decode, pq_encode, pq_loss, pq_stats, unpack_codes
from longspan.ops.reference import pq as reference
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck
from tests.ops.pq_cases import CASES, Problem, pack

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
POWERS = (1, 2)


def numbers(problem: Problem, dtype: torch.dtype, power: int) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, their codebook, and their codes as numbers."""
    _, k, codebook = problem.tensors(dtype)
    codes = pq_encode(k, codebook, power=power)
    return k, codebook, unpack_codes(codes, problem.subspaces, problem.codewords)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_codes_are_those_of_the_definition(name: str, dtype: torch.dtype, power: int) -> None:
    k, codebook, found = numbers(CASES[name], dtype, power)
    assert torch.equal(found, reference.pq_encode(k, codebook, power))


@pytest.mark.parametrize("power", POWERS)
def test_codes_are_the_nearest_in_float64_where_the_gap_is_more_than_rounding(power: int) -> None:
    k, codebook, found = numbers(CASES["nine heads of three"], F32, power)
    exact = reference.distances(k.double(), codebook.double(), power)
    best = exact.topk(2, largest=False)
    clear = best.values[..., 1] - best.values[..., 0] > 1e-5
    assert clear.float().mean() > 0.99
    assert torch.equal(found[clear], best.indices[..., 0][clear])


def test_ties_go_to_the_lowest_codeword() -> None:
    codebook = torch.zeros(1, 2, 7, 3)
    codebook[:, :, 4:] = 1
    z = torch.full((1, 1, 5, 6), 0.5)
    assert (unpack_codes(pq_encode(z, codebook), 2, 7) == 0).all()
    assert (unpack_codes(pq_encode(z + 1, codebook), 2, 7) == 4).all()


@pytest.mark.parametrize(("subspaces", "codewords"), [(1, 16), (5, 16), (8, 3), (10, 16), (16, 16), (3, 200), (9, 256)])
def test_pack_and_unpack(subspaces: int, codewords: int) -> None:
    given = torch.randint(codewords, (3, 2, 11, subspaces), generator=torch.Generator().manual_seed(0))
    assert torch.equal(unpack_codes(pack(given, codewords), subspaces, codewords), given)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("name", ["nine heads of three", "bytes", "many pieces"])
def test_codewords_stand_for_themselves(name: str, power: int) -> None:
    problem = CASES[name]
    _, _, codebook = problem.tensors(F32)
    heads = problem.K
    given = torch.randint(problem.codewords, (1, heads, 50, problem.subspaces))
    codes = pack(given, problem.codewords)
    z = pq_decode(codes, codebook)
    assert torch.equal(pq_encode(z, codebook, power=power), codes)


def test_the_nearest_codeword_is_decoded() -> None:
    k, codebook, found = numbers(CASES["plain"], F32, 2)
    decoded = pq_decode(pack(found, 16), codebook)
    assert decoded.shape == k.shape
    book = codebook.repeat_interleave(k.shape[1] // codebook.shape[0], 0)
    assert torch.equal(decoded[1, 1, 7, 4:8], book[1, 1, found[1, 1, 7, 1]])


def test_heads_of_a_group_share_a_codebook() -> None:
    q, _, codebook = CASES["plain"].tensors(F32)
    repeated = codebook.repeat_interleave(2, 0)
    assert torch.equal(pq_encode(q, codebook), pq_encode(q, repeated))


def test_strides_and_threads_change_nothing() -> None:
    q, _, codebook = CASES["nine heads of three"].tensors(F32)
    assert torch.equal(pq_encode(q, codebook), pq_encode(q.contiguous(), codebook))
    codes = pq_encode(q, codebook)

    def run() -> dict[str, Tensor]:
        leaf = codebook.clone().requires_grad_()
        loss = pq_loss(q, leaf, codes)
        loss.backward()
        sums, counts = pq_stats(q, codes, groups=3, subspaces=8, codewords=16, width=8)
        return {
            "codes": pq_encode(q, codebook),
            "loss": loss.detach(),
            "gradient": leaf.grad,
            "sums": sums,
            "n": counts,
        }

    assert_threads_change_no_bit(run)


# ---- the loss --------------------------------------------------------------------------------------------------------


def learned(
    function: Callable[..., Tensor], z: Tensor, codebook: Tensor, codes: Tensor, power: int
) -> dict[str, Tensor]:
    z, codebook = z.clone().requires_grad_(), codebook.clone().requires_grad_()
    loss = function(z, codebook, codes, power)
    (loss * 3).backward()
    return {"loss": loss.detach(), "dcodebook": codebook.grad, "dz": z.grad}


def ours(z: Tensor, codebook: Tensor, codes: Tensor, power: int) -> Tensor:
    return pq_loss(z, codebook, pack(codes, codebook.shape[2]), power=power, commit=True)


@pytest.mark.parametrize("power", POWERS)
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", [name for name in CASES if name != "no rows"])
def test_loss_keeps_the_error_law(name: str, dtype: torch.dtype, power: int) -> None:
    k, codebook, codes = numbers(CASES[name], dtype, power)
    given = learned(ours, k, codebook, codes, power)
    exact = learned(reference.pq_loss, k.double(), codebook.double(), codes, power)
    rounded = learned(reference.pq_loss, k.float(), codebook.float(), codes, power)
    # One number, a mean of squares: torch's error of it is chance, a bound relative to its sums is not.
    eps = torch.finfo(given["loss"].dtype).eps
    assert abs(float(given["loss"]) - float(exact["loss"])) <= 32 * eps * float(exact["loss"])
    for key in ("dcodebook", "dz"):
        torchs = rounded[key].to(dtype) if key == "dz" and dtype == BF16 else rounded[key]
        assert_error_bound(f"{name} {key}", given[key], torchs, exact[key], BACKWARD)


@pytest.mark.parametrize("power", POWERS)
def test_gradcheck(power: int) -> None:
    problem = Problem(B=1, H=2, K=2, T=5, D=6, subspaces=2, codewords=4)
    _, k, codebook = problem.tensors(F64)
    codes = pq_encode(k, codebook, power=power)
    leaves = k.contiguous().requires_grad_(), codebook.requires_grad_()
    assert torch.autograd.gradcheck(lambda z, c: pq_loss(z, c, codes, power=power, commit=True), leaves)


def test_one_codeword_pulls_to_the_mean() -> None:
    z, codebook = torch.randn(1, 1, 40, 8), torch.randn(1, 1, 1, 8)
    torch.testing.assert_close(pq_loss(z, codebook), (z - codebook[0, 0]).square().mean())


def test_vectors_on_far_codewords_cost_nothing() -> None:
    codebook = torch.arange(8.0)[None, None, :, None].expand(1, 2, 8, 4).contiguous() * 100
    codes = pack(torch.randint(8, (1, 1, 30, 2)), 8)
    assert pq_loss(pq_decode(codes, codebook), codebook) < 1e-6


def test_queries_and_keys_are_left_alone_unless_asked() -> None:
    z, codebook = torch.randn(1, 1, 9, 8).requires_grad_(), torch.randn(1, 2, 4, 4).requires_grad_()
    pq_loss(z, codebook).backward()
    assert z.grad is None
    assert codebook.grad is not None


def test_no_gradient_of_a_codebook_without_vectors() -> None:
    codebook = torch.randn(1, 2, 4, 4).requires_grad_()
    loss = pq_loss(torch.zeros(1, 1, 0, 8), codebook)
    loss.backward()
    assert loss == 0
    assert torch.equal(codebook.grad, torch.zeros_like(codebook))


def test_saved_is_the_codebooks_gradient_alone() -> None:
    z, codebook = torch.randn(1, 2, 4096, 64), torch.randn(2, 8, 16, 8).requires_grad_()
    codes = pq_encode(z, codebook.detach())
    with measure() as live:
        loss = pq_loss(z, codebook, codes)
    assert live.end_bytes <= codebook.numel() * 4 + 256
    del loss


# ---- k-means ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_sums_and_counts(name: str, dtype: torch.dtype) -> None:
    problem = CASES[name]
    k, _, codes = numbers(problem, dtype, 2)
    shape = (problem.groups, problem.subspaces, problem.codewords, problem.width)
    names = ("groups", "subspaces", "codewords", "width")
    sums, counts = pq_stats(k, pack(codes, problem.codewords), **dict(zip(names, shape, strict=True)))
    exact, wanted = reference.pq_stats(k.double(), codes, shape)
    rounded, _ = reference.pq_stats(k.float(), codes, shape)
    assert torch.equal(counts, wanted)
    assert_error_bound("sums", sums, rounded, exact, FORWARD)


def test_a_step_of_k_means_never_raises_the_error() -> None:
    problem = Problem(B=1, H=2, K=2, T=400)
    _, k, codebook = problem.tensors(F32)
    errors = []
    for _ in range(6):
        codes = pq_encode(k, codebook)
        errors.append((pq_decode(codes, codebook) - k).square().mean().item())
        sums, counts = pq_stats(k, codes, groups=2, subspaces=4, codewords=16, width=4)
        mean = sums / counts[..., None].clamp(min=1)
        codebook = torch.where(counts[..., None] > 0, mean, codebook)
    assert all(after <= before for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


# ---- torch's contract, bad input -------------------------------------------------------------------------------------


def test_op_check_and_compile() -> None:
    _, k, codebook = CASES["plain"].tensors(F32)
    k, codebook = k.contiguous(), codebook.requires_grad_()
    codes = pq_encode(k, codebook)
    opcheck(torch.ops.longspan.pq_encode.default, (k, codebook.detach(), 2))
    opcheck(torch.ops.longspan.pq_stats.default, (k, codes, 2, 4, 16, 4))
    leaf = k.clone().requires_grad_()
    for arguments in ((leaf, codebook, codes, 2, 1e-5, True), (k, codebook, codes, 1, 1e-5, False)):
        opcheck(torch.ops.longspan.pq_loss.default, arguments)
    compiled = torch.compile(lambda z, c: (pq_encode(z, c), pq_loss(z, c)), fullgraph=True, backend="aot_eager")
    found, loss = compiled(k, codebook)
    assert torch.equal(found, codes)
    assert torch.equal(loss, pq_loss(k, codebook))


def test_one_piece_may_be_wider_than_what_it_holds() -> None:
    z, book = torch.randn(1, 2, 5, 3), torch.randn(1, 1, 4, 4)
    codes = pq_encode(z, book)
    sums, counts = pq_stats(z, codes, groups=1, subspaces=1, codewords=4, width=4)
    assert counts.sum() == 10
    torch.testing.assert_close(sums.sum((0, 1, 2))[:3], z.sum((0, 1, 2)))


Z, BOOK = torch.zeros(1, 2, 3, 8), torch.zeros(2, 2, 4, 4)
BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: pq_encode(Z[0], BOOK), r"z has shape \(2, 3, 8\); it must be \[B,H,T,D\]"),
    (lambda: pq_encode(Z.int(), BOOK), "z is torch.int32; allowed: float32, float64, bfloat16"),
    (lambda: pq_encode(Z, BOOK.double()), "the codebook is torch.float64"),
    (lambda: pq_encode(Z, BOOK[0]), r"it must be torch.float32 \[G,M,E,d\]"),
    (lambda: pq_encode(Z, BOOK.mT), "the codebook must be contiguous"),
    (lambda: pq_encode(Z, torch.zeros(2, 2, 300, 4)), "300 codewords; allowed: 1 to 64 of 1 to 256"),
    (lambda: pq_encode(Z, torch.zeros(3, 2, 4, 4)), "3 groups and 2 x 4 components does not fit 2 heads of 8"),
    (lambda: pq_encode(Z, torch.zeros(1, 2, 4, 3)), "2 x 3 components does not fit 2 heads of 8"),
    (lambda: pq_encode(Z, torch.zeros(1, 3, 4, 4)), "3 x 4 components does not fit 2 heads of 8"),
    (lambda: pq_encode(Z, BOOK, power=3), "power is 3; allowed: 1, 2"),
    (lambda: pq_encode(Z.mT, torch.zeros(1, 1, 4, 3)), "must be contiguous; call z.contiguous"),
    (lambda: pq_loss(Z, BOOK, eps=0), "eps is 0; it must be positive and finite"),
    (lambda: pq_loss(Z, BOOK, torch.zeros(1, 2, 3, 2, dtype=torch.int32)), r"must be contiguous int32 \(1, 2, 3, 1\)"),
    (lambda: unpack_codes(torch.zeros(3, 2, dtype=torch.int32), 4, 16), r"take int32 \[..., 1\]"),
    (lambda: pq_decode(torch.zeros(1, 3, 3, 1, dtype=torch.int32), BOOK), r"2 \| H"),
    (lambda: unpack_codes(torch.full((3, 1), 7, dtype=torch.int32), 2, 4), "codes has code 7; there are 4 codewords"),
    (lambda: unpack_codes(torch.zeros(3, 1, dtype=torch.int32), 0, 4), "subspaces is 0; allowed: 1 to 64"),
    (lambda: pq_loss(Z, BOOK, torch.full((1, 2, 3, 1), 7, dtype=torch.int32)), "has code 7 in subspace 0"),
    (
        lambda: pq_stats(Z, torch.zeros(1, 2, 3, 1, dtype=torch.int32), groups=1, subspaces=2, codewords=0, width=4),
        "codewords is 0; allowed: 1 to 256",
    ),
    (
        lambda: pq_stats(
            Z, torch.full((1, 2, 3, 1), 7, dtype=torch.int32), groups=1, subspaces=2, codewords=4, width=4
        ),
        "has code 7 in subspace 0; the codebook has 4 codewords",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_mistakes_are_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message):
        call()
