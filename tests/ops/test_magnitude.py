"""The k-th largest magnitude against sorting: exactness, ties, zeros, groups, and bad input."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.memory import measure
from longspan.ops.magnitude import Thresholds, kth_magnitude, magnitude_histogram, squared_norms
from longspan.ops.reference import magnitude as reference
from tests.laws import assert_threads_change_no_bit

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def kept_of(found: Thresholds, tensors: list[Tensor], group: int = 0) -> Tensor:
    """Which elements of a group the threshold and the cut keep, bool [n]."""
    flat = torch.cat([x.flatten().float() for x in tensors]).abs()
    bits = flat.view(torch.int32)
    number = torch.arange(len(flat))
    return (bits > found.bits[group]) | ((bits == found.bits[group]) & (number < found.cut[group]))


def assert_as_sorted(tensors: list[Tensor], wanted: int, *, exact: bool = True) -> None:
    found = kth_magnitude(tensors, [wanted], groups=[0] * len(tensors), exact=exact)
    threshold, kept = reference.kth_magnitude(tensors, wanted, exact=exact)
    assert found.values.item() == threshold
    assert torch.equal(kept_of(found, tensors), kept)
    assert found.kept.item() == kept.sum()
    flat = torch.cat([x.flatten().double() for x in tensors]).square()
    torch.testing.assert_close(found.squares[0], flat[kept].sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.all_squares[0], flat.sum(), rtol=1e-13, atol=0)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=4),
    share=st.floats(0, 1),
    exact=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    scale=st.sampled_from([0.0, 1e-42, 1e-6, 1.0, 1e4]),
    levels=st.sampled_from([0, 1, 7]),
)
def test_as_sorted(sizes: list[int], share: float, exact: bool, dtype: torch.dtype, scale: float, levels: int) -> None:
    torch.manual_seed(sum(sizes))
    tensors = [torch.randn(n) for n in sizes]
    if levels:  # many equal ones
        tensors = [(x * levels).round() / levels for x in tensors]
    tensors = [(x * scale).to(dtype) for x in tensors]
    total = sum(sizes)
    if total:
        assert_as_sorted(tensors, max(1, min(total, int(share * total))), exact=exact)


def test_float32_and_bfloat16_share_a_group() -> None:
    torch.manual_seed(0)
    assert_as_sorted([torch.randn(300), torch.randn(70, 11).bfloat16(), torch.randn(5)], 321)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_group_that_all_workers_share(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    assert_as_sorted([torch.randn((1 << 22) + 12345).to(dtype)], 1 << 20)


def test_groups_in_any_order_are_as_alone() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(n) for n in (100, 30, 500, 7)]
    groups = [2, 1, 0, 0]
    found = kth_magnitude(tensors, [200, 9, 40], groups=groups)
    for group, wanted in ((0, 200), (1, 9), (2, 40)):
        own = [x for x, g in zip(tensors, groups, strict=True) if g == group]
        alone = kth_magnitude(own, [wanted], groups=[0] * len(own))
        assert found.bits[group] == alone.bits[0]
        assert found.kept[group] == alone.kept[0]


def test_powers_of_two_scale_the_threshold_and_permutations_permute_the_mask() -> None:
    torch.manual_seed(0)
    x = torch.randn(999)
    found = kth_magnitude([x], [200])
    for e in (-20, 3, 30):
        assert kth_magnitude([x * 2.0**e], [200]).values == found.values * 2.0**e
    order = torch.randperm(999)
    assert torch.equal(kept_of(kth_magnitude([x[order]], [200]), [x[order]]), kept_of(found, [x])[order])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_histogram_counts_every_element_once_and_shards_add_up(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(5000).to(dtype)
    counts, _ = magnitude_histogram([x])
    assert torch.equal(counts[0], reference.magnitude_histogram([x]))
    parts = [magnitude_histogram([part.contiguous()])[0] for part in x.tensor_split(7)]
    assert torch.equal(sum(parts), counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_squares_are_those_of_float64(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    sizes = (0, 1, 15, 1023, 1025, (1 << 20) + 7, 3)  # around vectors, blocks and a worker's share
    tensors = [(torch.randn(n) * torch.randn(n).exp()).to(dtype) for n in sizes]
    groups = [3, 0, 1, 0, 2, 1, 3]
    expected = torch.zeros(5, dtype=torch.float64)
    for x, g in zip(tensors, groups, strict=True):
        expected[g] += x.double().square().sum()
    torch.testing.assert_close(squared_norms(tensors, groups=groups), expected[:4], rtol=1e-13, atol=0)
    each = squared_norms(tensors)
    assert torch.equal(each, magnitude_histogram(tensors)[1])
    assert each[0] == 0


def test_not_finite_shows_in_the_squares() -> None:
    for value in (torch.inf, torch.nan):
        x = torch.ones(100)
        x[37] = value
        assert not kth_magnitude([x], [10]).all_squares.isfinite()
        for dtype in DTYPES:
            assert not squared_norms([x.to(dtype)]).isfinite()
    assert squared_norms([torch.full((100,), 3e38)]).isfinite()
    assert kth_magnitude([torch.full((100,), 3e38)], [10]).all_squares.isfinite()


def test_threads_change_no_bit() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(n) for n in ((1 << 22) + 1, 1000, 77777)]

    def run() -> dict[str, Tensor]:
        found = kth_magnitude(tensors, [1000, 10, 7000])
        return {"norms": squared_norms(tensors)} | {
            name: getattr(found, name) for name in ("bits", "cut", "kept", "squares", "all_squares")
        }

    assert_threads_change_no_bit(run)


def test_no_copy_of_the_tensors_is_made() -> None:
    x = torch.randn(1 << 21)
    with measure() as m:
        kth_magnitude([x], [1000])
        squared_norms([x])
    assert m.peak_bytes < x.nbytes / 4


def test_mistakes_are_named() -> None:
    x = torch.randn(10)
    for call, message in (
        (lambda: kth_magnitude([], []), "the list of tensors is empty"),
        (lambda: kth_magnitude([x], [11]), r"wanted\[0\] is 11; group 0 has 10 elements, so 1 to 10 is allowed"),
        (lambda: kth_magnitude([x], [0]), r"wanted\[0\] is 0"),
        (lambda: kth_magnitude([x.double()], [1]), r"tensors\[0\] is torch.float64; allowed: float32"),
        (lambda: kth_magnitude([x, x.half()], [1], groups=[0, 0]), "group 0 has float16 and other dtypes"),
        (lambda: kth_magnitude([x[::2]], [1]), r"tensors\[0\] must be contiguous"),
        (lambda: kth_magnitude([x], [1, 2]), "wanted has 2 numbers; there are 1 groups"),
        (lambda: squared_norms([x], groups=[-1]), r"squared_norms: groups is \[-1\]"),
        (
            lambda: squared_norms([x], groups=[2**32]),
            r"groups is \[4294967296\]; it must hold a number from 0 to 65535",
        ),
        (lambda: magnitude_histogram([x], bins=torch.zeros(1)), "bins is torch.float32"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [50, 200_000])  # counted whole, and by a sample
def test_without_norms_sums_are_nothing_but_tell_what_is_not_finite(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(size).to(dtype)
    wanted = size // 5
    full, bare = (kth_magnitude([x], [wanted], norms=norms) for norms in (True, False))
    assert all(torch.equal(getattr(full, name), getattr(bare, name)) for name in ("bits", "cut", "kept"))
    assert bare.squares.tolist() == bare.all_squares.tolist() == [0.0]
    for value in (torch.inf, -torch.inf, torch.nan):
        for at in (0, size // 2, size - 1):
            y = x.clone()
            y[at] = value
            assert kth_magnitude([y], [wanted], norms=False).all_squares.isnan()
            assert not kth_magnitude([y], [wanted]).all_squares.isfinite()


def test_a_sample_that_misleads_changes_no_bit() -> None:
    """Blocks that are nearly zero and short runs that are large: a sample of short runs says little of the whole."""
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1 << 17, generator=generator)
        x.view(-1, 256)[torch.rand(512, generator=generator) < 0.5] *= 1e-6
        x.view(-1, 16)[:: 1 + seed % 7] *= 2.0**seed
        for wanted in (1, 700, 1 << 13, 1 << 16, (1 << 17) - 1):
            assert_as_sorted([x], wanted)
            assert_as_sorted([x.bfloat16()], wanted)
