"""What every op obeys: errors bounded by those of PyTorch's own arithmetic in the same dtype, and the rules of ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests import heap

FORWARD, BACKWARD = 2.0, 3.0


def assert_error_bound(name: str, ours: Tensor, torchs: Tensor, exact: Tensor, factor: float, terms: int = 1) -> None:
    """max|ours - exact| <= factor * max|torch - exact| + eps, and the same for the RMS, so outliers cannot hide.

    exact: the float64 reference on the same (already rounded) inputs; torchs: the same reference in the dtype of ours.
    eps: two units in the last place of the largest value. For float64 no wider oracle exists: give torch's float32
    result, whose error is scaled by the ratio of the two precisions, and one more of it is allowed because the
    reference itself is then rounded as often as the kernel.
    terms: for any problem at all, the length of the longest sum: the largest of many errors is then no sample of
    torch's, and is held to eps times its root instead (Higham and Mary 2019, SISC 41(5), 1).
    """
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    if not ours.numel():
        return
    infinite = torch.isinf(exact)
    assert torch.equal(infinite, torch.isinf(ours)), f"{name}: infinities differ"
    ours64, torch64, exact64 = (torch.where(infinite, 0.0, x.double()) for x in (ours, torchs, exact))
    assert torch.isfinite(ours64).all(), f"{name}: not finite"
    eps = 2 * torch.finfo(ours.dtype).eps * max(1.0, exact64.abs().max().item())
    scale = torch.finfo(ours.dtype).eps / torch.finfo(torchs.dtype).eps
    factor += ours.dtype == torch.float64
    error, allowed = (ours64 - exact64).abs(), (torch64 - exact64).abs() * scale
    largest = ("max", error.max(), allowed.max(), eps * max(1, terms) ** 0.5)
    for kind, e, a, floor in (largest, ("rms", _rms(error), _rms(allowed), eps)):
        assert e.item() <= factor * a.item() + floor, (
            f"{name}: {kind} error {e:.3e}, torch has {a:.3e}, eps {floor:.1e}"
        )


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()


def opcheck(op: Any, arguments: tuple[Any, ...]) -> None:
    """`torch.library.opcheck`, and no call keeps a byte: an argument that its conversion does not free is a leak."""
    torch.library.opcheck(op, arguments)
    given = tuple(x.detach() if isinstance(x, Tensor) else x for x in arguments)
    kept = heap.kept_by_each_call(lambda: op(*given))
    assert kept < 8, f"{op} keeps {kept:.1f} bytes a call"


def assert_threads_change_no_bit(run: Callable[[], Mapping[str, Tensor]]) -> None:
    """The same bits with one thread, with as many as there are cores, and with more."""
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    for threads, other in ((2, results[1]), (5, results[2])):
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), f"{name} differs with {threads} threads"
