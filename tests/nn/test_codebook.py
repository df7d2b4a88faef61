"""Codewords: found where the vectors are, never worse by a step of k-means, renewed when nothing is near them."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from longspan.nn import codebook as module
from longspan.nn.codebook import Codebook
from longspan.ops import pq_decode


def clustered(centres: Tensor, per: int, spread: float, seed: int = 0) -> Tensor:
    """Vectors [1,H,per * E,M d] around centres [H,M,E,d], each subspace in an order of its own."""
    generator = torch.Generator().manual_seed(seed)
    heads, pieces, count, _ = centres.shape
    parts = []
    for head in range(heads):
        rows = []
        for piece in range(pieces):
            order = torch.randperm(per * count, generator=generator) % count
            found = centres[head, piece, order]
            rows.append(found + spread * torch.randn(found.shape, generator=generator))
        parts.append(torch.cat(rows, 1))
    return torch.stack(parts)[None]


def error(book: Codebook, z: Tensor) -> float:
    return float((pq_decode(book.encode(z), book.weight)[..., : z.shape[-1]] - z).square().mean())


@pytest.mark.parametrize("power", [1, 2])
def test_finds_clusters(power: int) -> None:
    torch.manual_seed(1)
    centres = torch.randn(2, 3, 8, 4) * 10
    z = clustered(centres, 50, 1e-4)
    book = Codebook(2, 12, 3, 8, power)
    book.fit(z)
    assert error(book, z) < 1e-6
    assert float(book.loss(z, book.encode(z))) < 1e-6
    assert float(book.entropy(book.encode(z)).min()) > 0.999


def test_the_same_vectors_give_the_same_codewords() -> None:
    z = torch.randn(2, 4, 300, 20, generator=torch.Generator().manual_seed(0))
    first, second = Codebook(4, 20), Codebook(4, 20)
    first.fit(z)
    second.fit(z)
    assert torch.equal(first.weight, second.weight)
    assert first.weight.shape == (4, 3, 16, 7)


def test_a_round_of_k_means_never_raises_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(1, 3, 500, 16, generator=torch.Generator().manual_seed(2)) ** 3
    errors = []
    for rounds in range(6):
        monkeypatch.setattr(module, "ROUNDS", rounds)
        book = Codebook(3, 16, 2, 16)
        book.fit(z)
        errors.append(error(book, z))
    assert all(after <= before * (1 + 1e-6) for before, after in itertools.pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]


def test_queries_and_keys_share_codewords() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(1, 6, 200, 8, generator=generator) + 20, torch.randn(1, 2, 200, 8, generator=generator) - 20
    book = Codebook(1, 8, 1, 8, power=1)
    book.fit(q, k)
    means = book.weight.mean(-1).flatten()
    assert int((means > 10).sum()) >= 2
    assert int((means < -10).sum()) >= 2
    assert int(((means > -10) & (means < 10)).sum()) == 0


def test_a_codeword_that_nothing_is_near_to_is_renewed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 3)
    z = torch.randn(2, 2, 64, 8, generator=torch.Generator().manual_seed(4))
    book = Codebook(2, 8, 2, 4)
    book.fit(z)
    with torch.no_grad():
        book.weight[1, 0, 2] = 1e6
    before = book.weight.detach().clone()
    for call in range(3):
        assert torch.equal(book.weight, before)
        book.renew([z], [book.encode(z)], call)
    changed = (book.weight != before).any(-1).nonzero().tolist()
    assert changed == [[1, 0, 2]]
    candidates = z[:, 1, :, :4].reshape(-1, 4)
    assert bool((candidates == book.weight[1, 0, 2]).all(1).any())
    assert int(book.idle.max()) == 0
    codes = book.encode(z)
    assert float(book.entropy(codes)[1, 0]) > 0


def test_entropy_of_one_codeword_is_nothing() -> None:
    book = Codebook(1, 8, 2, 4)
    z = torch.zeros(1, 1, 30, 8)
    book.fit(z)
    assert float(book.entropy(book.encode(z)).abs().max()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1, 64, 0), "subspaces is 0; a head of 64 components has 1 to 64"),
        ((1, 64, 8, 257), "codewords is 257; allowed: 1 to 256"),
        ((1, 10, 7), "10 components do not fill 7 pieces of 2; use 5 subspaces"),
    ],
)
def test_bad_shapes(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Codebook(*arguments)
