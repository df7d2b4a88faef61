"""What the pybind11 module takes for an array: any memory that a kernel can read as it lies, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels

X = np.arange(24, dtype=np.float32).reshape(4, 6)
LIST = np.zeros((1, 1, 2, 1), np.int32)
Q = np.zeros((1, 1, 2, 4), np.float32)


def misaligned() -> np.ndarray:
    return np.frombuffer(bytearray(4 * 24 + 1), np.uint8)[1:].view(np.float32).reshape(4, 6)


def structured() -> np.ndarray:
    """Floats with a byte between them."""
    return np.zeros((4, 6), np.dtype([("x", "f4"), ("y", "u1")]))["x"]


def sharing() -> np.ndarray:
    return np.lib.stride_tricks.as_strided(np.zeros(9, np.float32), (4, 6), (4, 4))


def read_only() -> np.ndarray:
    x = X.copy()
    x.flags.writeable = False
    return x


GATE: dict[str, tuple[Callable[[], Any], str]] = {
    "byte order": (lambda: X.astype(">f4"), "gate is of format '>f'; allowed: float32, float64, bfloat16"),
    "complex": (lambda: X.astype(np.complex64), "gate is of format 'Zf'; allowed: float32, float64, bfloat16"),
    "text": (lambda: X.astype("S8"), "gate is of format '8s'; allowed: float32, float64, bfloat16"),
    "misaligned": (misaligned, "gate does not begin at a multiple of its 4 bytes an element; give a copy of it"),
    "structured": (structured, "gate has a stride of 30 bytes for elements of 4; give a copy of it"),
    "backwards": (
        lambda: X[::-1],
        "gate has stride -6 along dimension 0; strides must not be negative, give a copy of it",
    ),
}


@pytest.mark.parametrize("name", GATE)
def test_arrays_that_no_kernel_can_read(name: str) -> None:
    make, message = GATE[name]
    with pytest.raises(ValueError) as error:
        kernels.glu_fwd(make())
    assert str(error.value) == message


def test_a_tensor_that_gives_no_array_is_named() -> None:
    with pytest.raises(ValueError, match=r"gate gives no array: .*gradient"):
        kernels.glu_fwd(torch.zeros(2, 3, requires_grad=True))
    with pytest.raises(ValueError, match="gate gives no array: "):
        kernels.glu_fwd(torch.zeros(2, 3, device="meta"))


BAD: dict[str, Callable[[], Any]] = {
    "y is read-only; give an array that can be written": lambda: kernels.glu_fwd(X, y=read_only()),
    "y has elements that share memory; give an array that can be written": lambda: kernels.glu_fwd(X, y=sharing()),
    "c has elements that share memory; give an array that can be written": lambda: kernels.gemm(
        X, X.T.copy(), sharing()
    ),
    "count is -1; allowed: 1 to 65536 groups": lambda: kernels.squared_norms([X], [0], -1),
    "counts must be contiguous": lambda: kernels.magnitude_histogram(
        [X], [0], 1, counts=np.zeros((1, 1 << 16), np.int64)[:, ::2]
    ),
    "squares must be contiguous": lambda: kernels.squared_norms([X], [0], 2, squares=np.zeros(4)[::2]),
    "tiles has 1 in slot 1; the numbers of a list must increase, with -1 only at its end": lambda: (
        kernels.AttentionSpec("tiles", tile_size=64, tiles=np.array([[[1, 1]]], np.int32))
    ),
    "list_attention: starts and rows of head 0 are not those of list_transpose(indices, 2)": lambda: (
        kernels.list_attention_bwd(
            Q, Q, Q, Q, Q, np.zeros((1, 1, 2), np.float32), LIST, np.array([[[0, 2, 9]]], np.int32), LIST[..., 0]
        )
    ),
    "queries is -1; allowed: 0 to 2^31 - 1": lambda: kernels.attention_visible_pairs(
        kernels.AttentionSpec(), 1, 1, -1, 2
    ),
    "a layout is not of 1 rows (or 1) of 5 tokens in CPU memory": lambda: kernels.attention_visible_pairs(
        kernels.AttentionSpec(query_layout=np.zeros((2, 1, 4), np.int32), key_layout=np.zeros((2, 1, 4), np.int32)),
        1,
        1,
        5,
        4,
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message


def test_empty_arrays_are_arrays() -> None:
    """Torch gives no memory to them, and null stands for what is not given."""
    x = torch.zeros(0, 6)
    y, total, _, _ = kernels.norm_fwd(x, residual=x)
    assert y.shape == total.shape == (0, 6)
