"""Masked optimiser steps against the float64 reference: modes, masks, what stays bit for bit, and bad input."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.ops.magnitude import kth_magnitude
from longspan.ops.reference import magnitude
from longspan.ops.reference import update as reference
from longspan.ops.update import MODES, UpdateMask, adamw_scalars, masked_adamw_, masked_sgd_, sgd_scalars
from tests.laws import FORWARD, assert_error_bound, assert_threads_change_no_bit

SHAPES = [(7, 33), (1000,), (3, 5, 9), (513, 129)]
F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
State = list[list[Tensor]]  # params, grads, exp_avgs, exp_avg_sqs


def state(gradients: torch.dtype = F32, weights: torch.dtype = F32) -> State:
    torch.manual_seed(0)
    params, grads = ([torch.randn(s) for s in SHAPES] for _ in range(2))
    firsts, seconds = [torch.randn(s) * 0.1 for s in SHAPES], [torch.rand(s) for s in SHAPES]
    return [[x.to(weights) for x in params], [x.to(gradients) for x in grads], firsts, seconds]


def clone(lists: State) -> State:
    return [[x.clone() for x in each] for each in lists]


def thresholds(grads: list[Tensor], share: float) -> tuple[dict[str, object], list[Tensor]]:
    """The arguments of threshold masks, and what they keep."""
    wanted = [max(1, int(share * x.numel())) for x in grads]
    masks = [UpdateMask("threshold", group=i) for i in range(len(grads))]
    kept = [magnitude.kth_magnitude([x], k)[1].view(x.shape) for x, k in zip(grads, wanted, strict=True)]
    return {"masks": masks, "thresholds": kth_magnitude(grads, wanted)}, kept


def assert_same(a: State, b: State) -> None:
    for ours, others in zip(a, b, strict=True):
        for x, y in zip(ours, others, strict=True):
            assert torch.equal(x, y)


@pytest.mark.parametrize("gradients", [F32, BF16], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_adamw_error_bound_and_frozen_bits(mode: str, gradients: torch.dtype) -> None:
    now = state(gradients)
    before = clone(now)
    masked, kept = thresholds(now[1], 0.2)
    options = {"lr": 0.01, "weight_decay": 0.1}
    masked_adamw_(*now, adamw_scalars(7, **options), mode=mode, zero_grad=True, **masked)
    for i, keep in enumerate(kept):
        results = now[0][i], now[2][i], now[3][i]
        given = [x[i] for x in before]
        exact, rounded = (
            reference.masked_adamw(*(x.to(t) for x in given), keep, mode=mode, step=7, **options) for t in (F64, F32)
        )
        for name, ours, theirs, true in zip("pmv", results, rounded, exact, strict=True):
            assert_error_bound(name, ours, theirs, true, FORWARD)
        if mode == "freeze":
            for ours, old in zip(results, (given[0], given[2], given[3]), strict=True):
                assert torch.equal(ours[~keep], old[~keep])
        assert not now[1][i].any()


@pytest.mark.parametrize("momentum", [None, 0.9])
@pytest.mark.parametrize("mode", MODES)
def test_sgd_error_bound(mode: str, momentum: float | None) -> None:
    params, grads, buffers, _ = state()
    before = clone([params, grads, buffers])
    masked, kept = thresholds(grads, 0.3)
    options = {"lr": 0.1, "momentum": momentum or 0.0, "weight_decay": 0.01}
    masked_sgd_(params, grads, None if momentum is None else buffers, sgd_scalars(**options), mode=mode, **masked)
    for i, keep in enumerate(kept):
        p, g, b = (x[i] for x in before)
        exact, rounded = (
            reference.masked_sgd(p.to(t), g.to(t), None if momentum is None else b.to(t), keep, mode=mode, **options)
            for t in (F64, F32)
        )
        assert_error_bound("p", params[i], rounded[0], exact[0], FORWARD)
        if momentum is not None:
            assert_error_bound("b", buffers[i], rounded[1], exact[1], FORWARD)


@pytest.mark.parametrize("mode", MODES)
def test_keeping_everything_is_the_plain_step_for_ten_steps(mode: str) -> None:
    plain, masked = state(), state()
    for step in range(1, 11):
        torch.manual_seed(step)
        for a, b in zip(plain[1], masked[1], strict=True):
            b.copy_(a.normal_())
        given, _ = thresholds(masked[1], 1.0)
        factors = torch.full((len(SHAPES),), 0.5)
        scalars = adamw_scalars(step, lr=0.01, weight_decay=0.1)
        masked_adamw_(*plain, scalars, factors=factors)
        masked_adamw_(*masked, scalars, factors=factors, mode=mode, **given)
    assert_same(plain, masked)


def test_mode_update_has_the_moments_of_the_plain_step() -> None:
    plain, masked = state(), state()
    given, _ = thresholds(masked[1], 0.1)
    masked_adamw_(*plain, adamw_scalars(3, lr=0.01))
    masked_adamw_(*masked, adamw_scalars(3, lr=0.01), mode="update", **given)
    assert_same(plain[2:], masked[2:])


def test_without_momentum_and_decay_the_modes_are_one() -> None:
    results = []
    for mode in MODES:
        params, grads, _, _ = state()
        given, _ = thresholds(grads, 0.25)
        masked_sgd_(params, grads, None, sgd_scalars(lr=0.1), mode=mode, **given)
        results.append([params])
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("kind", ["bits", "rows", "columns", "none"])
def test_only_what_a_mask_keeps_changes(kind: str) -> None:
    shape = (13, 70)
    params, grads, firsts, seconds = ([torch.randn(shape)] for _ in range(4))
    seconds[0].abs_()
    before = clone([params, firsts, seconds])
    torch.manual_seed(1)
    if kind == "bits":
        keep = torch.rand(shape) < 0.5
        bits = torch.nn.functional.pad(keep.flatten().int(), (0, -keep.numel() % 8)).view(-1, 8)
        mask = (bits << torch.arange(8)).sum(1).to(torch.uint8)
    else:
        mask = (torch.rand(13 if kind == "rows" else 70) < 0.5).to(torch.uint8)
        keep = {"rows": mask[:, None], "columns": mask}.get(kind, mask * 0).bool().expand(shape)
    masked_adamw_(
        params, grads, firsts, seconds, adamw_scalars(1, lr=0.1), masks=[UpdateMask(kind, mask)], mode="freeze"
    )
    for now, old in zip((params, firsts, seconds), before, strict=True):
        assert torch.equal(now[0] != old[0], keep)


def test_a_factor_that_is_not_a_number_changes_nothing_but_the_gradient() -> None:
    now = state()
    before = clone(now)
    factors = torch.tensor([1.0, torch.nan, torch.nan, 1.0])
    masked_adamw_(*now, adamw_scalars(1, lr=0.1), factors=factors, zero_grad=True)
    for i in (1, 2):
        assert all(torch.equal(now[part][i], before[part][i]) for part in (0, 2, 3))
    assert not any(x.any() for x in now[1])
    assert not torch.equal(now[0][0], before[0][0])


def test_copies_are_the_rounded_weights() -> None:
    now = state()
    copies = [x.bfloat16() if x.dim() > 1 else None for x in now[0]]
    masked_adamw_(*now, adamw_scalars(1, lr=0.1), copies=copies)
    for copy, weight in zip(copies, now[0], strict=True):
        assert copy is None or torch.equal(copy, weight.bfloat16())


def test_stochastic_rounding_has_the_right_mean_and_keeps_what_is_exact() -> None:
    n = 1 << 16
    weight, step = 1.0, 0.25 * 2**-7  # a quarter of the spacing of bfloat16 above 1
    params, grads = [torch.full((n,), weight, dtype=BF16)], [torch.full((n,), -step)]
    masked_sgd_(params, grads, None, sgd_scalars(lr=1.0), stochastic_seed=3)
    up = (params[0] > weight).double().mean()
    assert abs(float(up) - 0.25) < 4 * (0.25 * 0.75 / n) ** 0.5
    assert set(params[0].unique().tolist()) == {1.0, 1.0 + 2**-7}
    masked_sgd_(params, [torch.zeros(n)], None, sgd_scalars(lr=1.0), stochastic_seed=4)
    assert abs(float((params[0] > weight).double().mean()) - float(up)) == 0


def test_accumulated_masks_are_not_masks_of_parts() -> None:
    grads = [torch.tensor([3.0, 2.0]) / 2 + torch.tensor([-2.5, 2.0]) / 2]
    params = [torch.zeros(2)]
    masked_sgd_(
        params, grads, None, sgd_scalars(lr=1.0), masks=[UpdateMask("threshold")], thresholds=kth_magnitude(grads, [1])
    )
    assert params[0].tolist() == [0.0, -2.0]


def test_threads_change_no_bit() -> None:
    def run() -> dict[str, Tensor]:
        now = state()
        given, _ = thresholds(now[1], 0.2)
        masked_adamw_(*now, adamw_scalars(2, lr=0.01), **given)
        return {f"{i}{j}": x for i, part in enumerate(now) for j, x in enumerate(part)}

    assert_threads_change_no_bit(run)


def test_mistakes_are_named() -> None:
    now = state()
    scalars = adamw_scalars(1, lr=0.1)
    for call, message in (
        (lambda: masked_adamw_(*now, scalars, mode="skip"), "mode is 'skip'; allowed: grad, update, freeze"),
        (lambda: masked_adamw_(now[0], now[1][:2], *now[2:], scalars), "grads has 2 entries; there are 4 params"),
        (lambda: masked_adamw_(*now, sgd_scalars(lr=1.0)), "scalars is torch.float32"),
        (lambda: masked_adamw_(*now, scalars, masks=[UpdateMask("threshold")] * 4), "needs threshold 0; 0 are given"),
        (lambda: masked_adamw_(*now, scalars, masks=[UpdateMask("rows")] * 4), "rows of masks.0. are missing"),
        (lambda: masked_adamw_([x.double() for x in now[0]], *now[1:], scalars), r"params\[0\] is torch.float64"),
        (lambda: masked_adamw_([x.requires_grad_() for x in clone(now)[0]], *now[1:], scalars), "requires grad"),
        (lambda: adamw_scalars(0, lr=0.1), "steps are numbered from 1"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
