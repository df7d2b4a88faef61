"""Tensors of any shape as the rows that kernels take."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEW = 64  # numbers that a list compares faster than tensors


def last_contiguous(x: Tensor) -> Tensor:
    """x with its last dimension contiguous, copied only where it is not."""
    if x.shape[-1] <= 1 or x.stride(-1) == 1:
        return x
    # torch calls a tensor without elements contiguous, whatever its strides.
    return x.contiguous() if x.numel() else x.clone(memory_format=torch.contiguous_format)


def as_rows(x: Tensor) -> Tensor:
    """[..., C] as [T, C] with contiguous rows, copied only where the strides ask for it."""
    rows = x.reshape(-1, x.shape[-1]) if x.numel() else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return last_contiguous(rows)


def readable(x: Tensor) -> bool:
    """Whether the values of x can be looked at for free: they are in CPU memory, and nothing is traced or faked."""
    return type(x) is Tensor and x.device.type == "cpu" and not torch.compiler.is_compiling()


def check_distinct(where: str, numbers: Tensor, count: int) -> None:
    """Raises ValueError unless numbers [K] are different from each other and 0 to count - 1; of readable ones only."""
    if not readable(numbers) or numbers.numel() == 0:
        return
    if numbers.numel() <= FEW:
        listed = numbers.tolist()
        if len(set(listed)) == len(listed) and min(listed) >= 0 and max(listed) < count:
            return
    if not bool((numbers[1:] > numbers[:-1]).all()):
        numbers = numbers.sort().values
        same = (numbers[1:] == numbers[:-1]).nonzero()
        if len(same):
            raise ValueError(f"{where} has {int(numbers[int(same[0])])} twice; they must be different from each other")
    for number in (int(numbers[0]), int(numbers[-1])):
        if not 0 <= number < count:
            raise ValueError(f"{where} has {number}; allowed: 0 to {count - 1}")
