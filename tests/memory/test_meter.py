"""The live-bytes meter: exact, sees inside ops, nests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from longspan.memory import measure
from longspan.ops import AttentionPattern, attention

MEGABYTE = 1_000_000


@pytest.fixture
def hiding_op() -> Iterator[object]:
    """An op that takes 40 MB inside itself, frees it, and returns 4 bytes."""
    with torch.library._scoped_library("meter_test", "FRAGMENT") as library:
        library.define("hides(Tensor x) -> Tensor")

        def hides(x: Tensor) -> Tensor:
            scratch = x.new_empty(40 * MEGABYTE // 4)
            scratch[0] = x[0]
            return scratch[:1].clone()

        library.impl("hides", hides, "CPU")
        yield torch.ops.meter_test.hides.default


def test_memory_hidden_inside_an_op_is_seen(hiding_op) -> None:
    x = torch.ones(1)
    with measure() as m:
        y = hiding_op(x)
    assert y.item() == 1
    assert 40 * MEGABYTE <= m.peak_bytes <= 40 * MEGABYTE + 1024
    assert m.end_bytes == 4


def test_scratch_of_a_torch_kernel_is_seen() -> None:
    x = torch.rand(1000, 1000)
    with measure() as m:
        y = torch.nn.functional.layer_norm(x, (1000,))
    assert m.end_bytes == y.nbytes
    assert m.peak_bytes >= y.nbytes + 2 * 1000 * 4  # mean and rstd of each row live until the op returns


def test_scratch_of_our_kernels_is_seen() -> None:
    q, k, v = (torch.randn(1, 4, 256, 64) for _ in range(3))
    with measure() as m:
        out = attention(q, k, v, AttentionPattern.full())
    outputs = out.nbytes + 4 * 256 * 4
    assert m.end_bytes == out.nbytes  # lse is dropped: no gradient is needed
    assert m.peak_bytes > outputs + 64 * 1024  # at least one worker's tiles


@pytest.mark.parametrize("count", [1, 17, 1000, 123_457])
def test_exact_in_bytes(count: int) -> None:
    with measure() as m:
        a = torch.empty(count, dtype=torch.float64)
        b = torch.empty(count, dtype=torch.uint8)
        del a
    assert m.peak_bytes == 9 * count
    assert m.end_bytes == count == b.numel()


def test_peak_is_of_the_running_sum() -> None:
    with measure() as m:
        for _ in range(5):
            a = torch.empty(MEGABYTE, dtype=torch.uint8)
            del a
    assert (m.peak_bytes, m.end_bytes) == (MEGABYTE, 0)


def test_tensors_from_before_do_not_count() -> None:
    old = torch.empty(MEGABYTE, dtype=torch.uint8)
    with measure() as m:
        del old
        new = torch.empty(100, dtype=torch.uint8)
    assert (m.peak_bytes, m.end_bytes) == (100, 100)
    assert new.numel() == 100


def test_freed_between_measurements_is_forgotten() -> None:
    # The allocator may return the same address: what an earlier measurement saw there must not be subtracted.
    with measure():
        a = torch.empty(1000, dtype=torch.uint8)
    address = a.data_ptr()
    del a
    b = torch.empty(1000, dtype=torch.uint8)
    with measure() as m:
        del b
    assert m.end_bytes == 0, f"address {address:#x} was counted twice"


def test_nested_measurements_count_from_their_own_start() -> None:
    with measure() as outer:
        a = torch.empty(3 * MEGABYTE, dtype=torch.uint8)
        with measure() as inner:
            b = torch.empty(2 * MEGABYTE, dtype=torch.uint8)
            del a
        assert (inner.peak_bytes, inner.end_bytes) == (2 * MEGABYTE, 2 * MEGABYTE)
        c = torch.empty(MEGABYTE, dtype=torch.uint8)
        del b
    assert (inner.peak_bytes, inner.end_bytes) == (2 * MEGABYTE, 2 * MEGABYTE)
    assert (outer.peak_bytes, outer.end_bytes) == (5 * MEGABYTE, MEGABYTE)
    assert c.numel() == MEGABYTE


def test_backward_counts() -> None:
    w = torch.randn(500, 500, requires_grad=True)
    with measure() as m:
        (w @ w).sum().backward()
    assert w.grad is not None
    assert m.end_bytes >= w.grad.nbytes
    assert m.peak_bytes >= 3 * w.nbytes  # the product, and two partial gradients or their sum


def test_error_inside_leaves_the_meter_usable() -> None:
    with pytest.raises(KeyError), measure():
        raise KeyError
    with measure() as m:
        x = torch.empty(10, dtype=torch.uint8)
    assert m.end_bytes == x.numel()


def test_another_profiler_is_refused() -> None:
    with torch.autograd.profiler.profile(), pytest.raises(RuntimeError, match="another torch profiler"), measure():
        pass
    with measure() as m:
        pass
    assert m.peak_bytes == 0
