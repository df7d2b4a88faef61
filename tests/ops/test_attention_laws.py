"""Laws of attention that need no oracle, and LongLoRA's own: what a pattern may and may not see."""

from __future__ import annotations

import itertools

import pytest
import torch

from longspan.ops import AttentionPattern, TokenLayout, attention
from longspan.ops.reference.attention import visible
from tests.laws import assert_error_bound, assert_threads_change_no_bit
from tests.ops.attention_cases import assert_same_bits, inputs, oracle, ours, torchs

P = AttentionPattern
PATTERNS = [P.full(), P.s2(group_size=256, sinks=4), P.window(200, sinks=2)]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_thread_count_changes_no_bit(pattern: AttentionPattern) -> None:
    tensors = inputs(2, 6, 2, 1100, 48)
    assert_threads_change_no_bit(lambda: ours(tensors, pattern))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_packed_equals_separate(pattern: AttentionPattern) -> None:
    # Documents that start on tile borders see the same tiles in the same order: equal to the last bit.
    lengths = [256, 512, 0, 130]
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    tensors = inputs(1, 4, 2, sum(lengths), 32)
    packed = ours(tensors, pattern, layout=TokenLayout.packed(cu))
    forward = attention(*tensors, pattern, layout=TokenLayout.packed(cu))
    for start, end in itertools.pairwise(cu.tolist()):
        alone = attention(*(x[:, :, start:end] for x in tensors), pattern)
        assert torch.equal(forward[:, :, start:end], alone)
    assert torch.equal(packed["out"], forward)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_packed_equals_separate_anywhere(pattern: AttentionPattern) -> None:
    lengths = [1, 300, 77, 5]
    cu = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    tensors = inputs(1, 4, 2, sum(lengths), 32)
    packed = ours(tensors, pattern, layout=TokenLayout.packed(torch.tensor(cu)))
    exact = oracle(tensors, torch.float64, pattern, layout=TokenLayout.packed(torch.tensor(cu)))
    rounded = torchs(tensors, pattern, layout=TokenLayout.packed(torch.tensor(cu)))
    for start, end in itertools.pairwise(cu):
        alone = attention(*(x[:, :, start:end] for x in tensors), pattern)
        rows = (slice(None), slice(None), slice(start, end))
        assert_error_bound("alone", alone, rounded["out"][rows], exact["out"][rows], 2.0)
        assert_error_bound("packed", packed["out"][rows], rounded["out"][rows], exact["out"][rows], 2.0)


def test_permuting_documents_permutes_outputs() -> None:
    lengths, order = [256, 512, 256], [2, 0, 1]
    starts = [0, 256, 768]
    tensors = inputs(1, 4, 2, sum(lengths), 32)
    rows = torch.cat([torch.arange(starts[i], starts[i] + lengths[i]) for i in order])
    pattern = P.s2(group_size=128)
    first = ours(tensors, pattern, layout=TokenLayout.packed(torch.tensor([0, 256, 768, 1024])))
    moved = ours(
        tuple(x[:, :, rows] for x in tensors), pattern, layout=TokenLayout.packed(torch.tensor([0, 256, 512, 1024]))
    )
    assert torch.equal(first["out"][:, :, rows], moved["out"])


def test_shared_heads_equal_repeated_heads() -> None:
    q, k, v = inputs(1, 6, 2, 300, 32)
    repeated = (q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1))
    a, b = ours((q, k, v), P.s2(group_size=64)), ours(repeated, P.s2(group_size=64))
    assert torch.equal(a["out"], b["out"])
    assert torch.equal(a["dq"], b["dq"])
    torch.testing.assert_close(a["dk"], b["dk"].unflatten(1, (2, 3)).sum(2), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(a["dv"], b["dv"].unflatten(1, (2, 3)).sum(2), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pattern", [P.window(700), P.s2(group_size=2048), P.window(3, sinks=700)], ids=repr)
def test_pattern_that_hides_nothing_equals_full(pattern: AttentionPattern) -> None:
    tensors = inputs(1, 4, 2, 700, 32)
    assert_same_bits(ours(tensors, P.full()), ours(tensors, pattern))


def test_keeping_all_rows_changes_no_bit() -> None:
    tensors = inputs(1, 4, 2, 300, 32)
    layout = TokenLayout.packed(torch.tensor([0, 100, 300]))
    kept = TokenLayout.rows(layout, torch.arange(300))
    assert_same_bits(ours(tensors, P.full(), layout=layout), ours(tensors, P.full(), layout=kept))


def test_listing_every_tile_equals_full() -> None:
    tensors = inputs(1, 4, 2, 700, 32)
    every, full = ours(tensors, P.tiles([[[0, 1, 2]] * 3])), ours(tensors, P.full())
    for name, value in full.items():  # lists have a path of their own, which sums in another order
        torch.testing.assert_close(every[name], value, rtol=1e-5, atol=1e-6)


def test_padding_content_reaches_nothing() -> None:
    mask = torch.tensor([[0] * 20 + [1] * 60])
    q, k, v = inputs(1, 2, 1, 80, 16)
    first = ours((q, k, v), P.full(), layout=TokenLayout.padded(mask))
    dirty = [x.clone() for x in (q, k, v)]
    for x in dirty:
        x[:, :, :20] = float("nan") if x is dirty[0] else 1e30
    second = attention(*dirty, P.full(), layout=TokenLayout.padded(mask))
    assert torch.equal(first["out"][:, :, 20:], second[:, :, 20:])
    assert (first["out"][:, :, :20] == 0).all()
    assert (first["dq"][:, :, :20] == 0).all()
    assert (first["dk"][:, :, :20] == 0).all()


def test_scratch_is_never_read_before_it_is_written() -> None:
    tensors = inputs(2, 6, 2, 333, 40)
    plain = ours(tensors, P.s2(group_size=64, sinks=1), softcap=3.0)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    try:
        poisoned = ours(tensors, P.s2(group_size=64, sinks=1), softcap=3.0)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same_bits(plain, poisoned)


# --- LongLoRA --------------------------------------------------------------------------------------------------------


def test_s2_heads_equal_their_segments() -> None:
    G, T = 64, 300
    q, k, v = inputs(1, 4, 4, T, 16)
    out = attention(q, k, v, P.s2(group_size=G))
    for head, first in ((0, G), (1, G), (2, G // 2), (3, G // 2)):
        borders = [0, *range(first, T, G), T]
        one = tuple(x[:, head : head + 1] for x in (q, k, v))
        segments = attention(*one, layout=TokenLayout.packed(torch.tensor(borders)))
        torch.testing.assert_close(out[:, head : head + 1], segments, rtol=1e-5, atol=1e-6)


def _rolled_mask(T: int, G: int) -> torch.Tensor:
    """The published rolled form of a shifted head, written from its definition: original indices (query, key)."""
    rolled = torch.arange(T).roll(-G // 2)
    slot = torch.arange(T)
    seen = (slot[:, None] // G == slot[None] // G) & (slot[None] <= slot[:, None])
    mask = torch.zeros(T, T, dtype=torch.bool)
    mask[rolled[:, None], rolled[None]] = seen
    return mask


@pytest.mark.parametrize(("T", "G"), [(16, 4), (32, 8), (60, 20)])
def test_s2_is_the_rolled_form_without_its_leak(T: int, G: int) -> None:
    rolled = _rolled_mask(T, G)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    assert int((rolled & future).sum()) == (G // 2) ** 2
    ours_mask = visible(P.s2(group_size=G), 2, T, T)[0, 1]
    assert torch.equal(ours_mask, rolled & ~future)


def _stacked(x: torch.Tensor, pattern: AttentionPattern, layers: int) -> torch.Tensor:
    for _ in range(layers):
        # Every head reads the mean of all heads, so that groups mix between layers.
        shared = x.mean(1, keepdim=True).expand_as(x).contiguous()
        x = attention(shared, shared, shared, pattern)
    return x.mean(1)


def test_s2_never_sees_the_future_and_reaches_half_a_group_a_layer() -> None:
    T, G = 64, 16
    for layers in range(1, 9):
        x = torch.randn(1, 4, T, 4, dtype=torch.float64, requires_grad=True)
        y = _stacked(x, P.s2(group_size=G), layers)
        (last,) = torch.autograd.grad(y[0, -1].sum(), x, retain_graph=True)
        seen = last.abs().sum((0, 1, 3)) > 0
        assert int(seen.sum()) == min(T, G * (layers + 1) // 2)
        for query in (0, 7, 31):
            (grad,) = torch.autograd.grad(y[0, query].sum(), x, retain_graph=True)
            assert (grad[:, :, query + 1 :] == 0).all()


def test_s2_prefix_is_stable() -> None:
    tensors = inputs(1, 4, 2, 515, 32)
    long = attention(*tensors, P.s2(group_size=128, sinks=2))
    short = attention(*(x[:, :, :333] for x in tensors), P.s2(group_size=128, sinks=2))
    torch.testing.assert_close(long[:, :, :333], short, rtol=1e-5, atol=1e-6)


def test_groups_resolve_to_whole_tiles_once_per_run() -> None:
    assert P.s2(groups=4).resolve(8192).group_size == 2048
    assert P.s2(groups=4).resolve(5000).group_size == 1280
    assert P.s2(groups=4).resolve(101).group_size == 26
    assert P.s2(group_size=64).resolve(8192).group_size == 64
