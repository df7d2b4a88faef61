"""Magnitudes of many tensors: the k-th largest, exactly, the histograms that it comes from, and sums of squares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from longspan.ops._define import define, op, require

UPPER_BINS, LOWER_BINS = 1 << 15, 1 << 16
MAX_GROUPS = 1 << 16
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Thresholds:
    """What `kth_magnitude` finds for G groups; all on the tensors' device, nothing waits for it.

    bits: int32 [G], the threshold's bits as a float32 (`values` has it as a number). cut: int64 [G]: elements equal to
    it are kept if their number within the group is below. kept: int64 [G], how many elements are. squares: float64 [G],
    the sum of the squares of those; all_squares: of all elements, not finite exactly where an element is not.
    """

    bits: Tensor
    cut: Tensor
    kept: Tensor
    squares: Tensor
    all_squares: Tensor

    @property
    def values(self) -> Tensor:
        """float32 [G]."""
        return self.bits.view(torch.float32)


@torch.no_grad()
def kth_magnitude(
    tensors: Sequence[Tensor],
    wanted: Sequence[int] | Tensor,
    *,
    groups: Sequence[int] | None = None,
    exact: bool = True,
    norms: bool = True,
) -> Thresholds:
    """The wanted-th largest |x| of each group of tensors, exact; no gradient.

    tensors: contiguous, float32, bfloat16 or float16, any shapes; a group of float16 holds nothing else. groups: the
    group of each, numbered from 0; by default each tensor is one. wanted: a number for each group, 1 to its elements;
    an int64 tensor on the device is used as it is. exact: of equal elements only as many are kept as were asked for,
    those that come first in the order of the list and of the elements; else all of them. Zeros are never kept. norms:
    without, both sums of squares are 0, the one of all NaN where an element is not finite; on the CPU that is faster.

    16-bit elements are read once, float32 twice, and a group whose equal elements must be told apart once more. No
    copy of the tensors is made. The same bits on every device, with any number of threads; squares up to rounding.

    Raises ValueError naming what does not fit, and MissingBackendError when no kernel serves the device.
    Source: Gradient-Mask Tuning (Li et al. 2024, arXiv 2406.15330, section 3): the percentile of |gradient|.
    """
    numbers = _check("kth_magnitude", tensors, groups)
    count = max(numbers) + 1
    if not isinstance(wanted, Tensor):
        sizes = [0] * count
        for x, g in zip(tensors, numbers, strict=True):
            sizes[g] += x.numel()
        _check_wanted(wanted, sizes)
        wanted = torch.tensor(list(wanted), dtype=torch.int64).to(tensors[0].device)
    elif wanted.dtype != torch.int64 or wanted.shape != (count,) or wanted.device != tensors[0].device:
        raise ValueError(
            f"kth_magnitude: wanted is {wanted.dtype} {tuple(wanted.shape)} on {wanted.device}; it must be int64 "
            f"({count},) on {tensors[0].device}"
        )
    bits, cut, kept, squares = op("kth_magnitude")(list(tensors), numbers, wanted, exact, norms)
    return Thresholds(bits, cut, kept, squares[0], squares[1])


@torch.no_grad()
def magnitude_histogram(
    tensors: Sequence[Tensor], *, groups: Sequence[int] | None = None, bins: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Counts of magnitudes by their bits, and sums of squares: (counts, squares); no gradient.

    tensors, groups: as in `kth_magnitude`. Without bins, counts int64 [G, 32768] are by the upper 15 bits without the
    sign, which order as magnitudes do; squares float64 [G] are of the whole group. With bins int32 [G], counts
    [G, 65536] are by the lower 16 bits, of the elements whose upper bits are bins[g]; squares of those above. Sums over
    ranks are the histograms of sharded tensors. Raises ValueError and MissingBackendError as `kth_magnitude`.
    """
    numbers = _check("magnitude_histogram", tensors, groups)
    count = max(numbers) + 1
    if bins is not None and (bins.dtype != torch.int32 or bins.shape != (count,) or bins.device != tensors[0].device):
        raise ValueError(
            f"magnitude_histogram: bins is {bins.dtype} {tuple(bins.shape)} on {bins.device}; it must be int32 "
            f"({count},) on {tensors[0].device}"
        )
    counts, squares = op("magnitude_histogram")(list(tensors), numbers, count, bins)
    return counts, squares


@torch.no_grad()
def squared_norms(tensors: Sequence[Tensor], *, groups: Sequence[int] | None = None) -> Tensor:
    """The sum of squares of each group of tensors in one read: float64 [G], not finite exactly where an element is not.

    tensors, groups: as in `kth_magnitude`. The same bits with any number of threads; across devices up to rounding. No
    gradient. Raises ValueError and MissingBackendError as `kth_magnitude`.
    """
    numbers = _check("squared_norms", tensors, groups)
    squares: Tensor = op("squared_norms")(list(tensors), numbers, max(numbers) + 1)
    return squares


def _check(name: str, tensors: Sequence[Tensor], groups: Sequence[int] | None) -> list[int]:
    """The group of each tensor."""
    if not tensors:
        raise ValueError(f"{name}: the list of tensors is empty")
    numbers = list(range(len(tensors))) if groups is None else list(groups)
    if len(numbers) != len(tensors) or min(numbers) < 0 or max(numbers) >= MAX_GROUPS:
        raise ValueError(
            f"{name}: groups is {numbers}; it must hold a number from 0 to {MAX_GROUPS - 1} for each of {len(tensors)} "
            "tensors"
        )
    halves: dict[int, set[bool]] = {}
    for i, (x, g) in enumerate(zip(tensors, numbers, strict=True)):
        if x.dtype not in DTYPES:
            raise ValueError(f"{name}: tensors[{i}] is {x.dtype}; allowed: float32, bfloat16, float16")
        if not x.is_contiguous() or x.device != tensors[0].device:
            raise ValueError(f"{name}: tensors[{i}] must be contiguous and on {tensors[0].device}, not on {x.device}")
        halves.setdefault(g, set()).add(x.dtype == torch.float16)
        if len(halves[g]) > 1:
            raise ValueError(f"{name}: group {g} has float16 and other dtypes; give float16 a group of its own")
    require(name, tensors[0])
    return numbers


def _check_wanted(wanted: Sequence[int], sizes: list[int]) -> None:
    if len(wanted) != len(sizes):
        raise ValueError(f"kth_magnitude: wanted has {len(wanted)} numbers; there are {len(sizes)} groups")
    for g, (k, size) in enumerate(zip(wanted, sizes, strict=True)):
        if not 1 <= k <= size:
            raise ValueError(
                f"kth_magnitude: wanted[{g}] is {k}; group {g} has {size} elements, so 1 to {size} is allowed"
            )


def _kth_fake(tensors: list[Tensor], groups: list[int], wanted: Tensor, exact: bool, norms: bool) -> tuple[Tensor, ...]:
    count = wanted.shape[0]
    return (
        wanted.new_empty((count,), dtype=torch.int32),
        wanted.new_empty((count,)),
        wanted.new_empty((count,)),
        wanted.new_empty((2, count), dtype=torch.float64),
    )


def _histogram_fake(tensors: list[Tensor], groups: list[int], count: int, bins: Tensor | None) -> tuple[Tensor, Tensor]:
    columns = UPPER_BINS if bins is None else LOWER_BINS
    like = tensors[0]
    return like.new_empty((count, columns), dtype=torch.int64), like.new_empty((count,), dtype=torch.float64)


def _squares_fake(tensors: list[Tensor], groups: list[int], count: int) -> Tensor:
    return tensors[0].new_empty((count,), dtype=torch.float64)


define(
    "magnitude_histogram",
    "(Tensor[] tensors, int[] groups, SymInt count, Tensor? bins) -> (Tensor counts, Tensor squares)",
    _histogram_fake,
)
define(
    "kth_magnitude",
    "(Tensor[] tensors, int[] groups, Tensor wanted, bool exact, bool norms) "
    "-> (Tensor bits, Tensor cut, Tensor kept, Tensor squares)",
    _kth_fake,
)
define("squared_norms", "(Tensor[] tensors, int[] groups, SymInt count) -> Tensor", _squares_fake)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*((output,) if isinstance(output, Tensor) else output))
    ctx.count = len(inputs)
    ctx.listed = len(inputs[0])


def _constant(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
    return [None] * int(ctx.listed), *(None,) * (int(ctx.count) - 1)  # they only choose and scale


for _name in ("magnitude_histogram", "kth_magnitude", "squared_norms"):
    torch.library.register_autograd(f"longspan::{_name}", _constant, setup_context=_setup)
