"""The router's first weights: near even at random, and in the order of the blocks' contributions after a fit."""

from __future__ import annotations

import torch

from longspan.nn.router import Router
from longspan.ops import route_topk


def test_random_weights_gate_by_about_one() -> None:
    z = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    logits = Router(64, 4, seed=1)(z)
    gates = 2 * torch.sigmoid(logits)
    assert abs(float(gates.mean()) - 1) < 0.01
    assert 0.04 < float(gates.std()) < 0.06
    assert not torch.equal(Router(64, 4, seed=1).weight, Router(64, 4, seed=2).weight)
    assert torch.equal(Router(64, 4, seed=1).weight, Router(64, 4, seed=1).weight)


def test_a_fit_orders_blocks_by_their_norms() -> None:
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(2000, 24, generator=generator)
    truth = torch.randn(24, 4, generator=generator)
    norms = z @ truth + torch.tensor([5.0, 9.0, 7.0, 7.0]) + 3 * z[:, :1]  # a level for all blocks tells nothing
    router = Router(24, 4)
    router.fit(z, norms)
    assert router.fitted
    act, gates = route_topk(router(z), 2)
    best = norms.topk(2, 1).indices.sort(1).values
    assert float((act == best).double().mean()) > 0.99
    assert 0.03 < float(gates.std()) < 0.07
    assert float(gates.sub(1).abs().max()) < 0.4


def test_rows_fewer_than_columns() -> None:
    z = torch.randn(5, 24, generator=torch.Generator().manual_seed(2))
    router = Router(24, 4)
    router.fit(z, torch.rand(5, 4, generator=torch.Generator().manual_seed(3)))
    assert bool(torch.isfinite(router(z)).all())


def test_equal_norms_leave_the_gates_at_one() -> None:
    z = torch.randn(50, 8, generator=torch.Generator().manual_seed(4))
    router = Router(8, 4)
    router.fit(z, torch.ones(50, 4))
    assert float(router(z).abs().max()) < 1e-6
