"""Arrays in CUDA memory through `longspan.kernels`, as far as that goes without a GPU: all checks before a launch."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
import torch

from longspan import _native, kernels

_GET_POINTER = ctypes.pythonapi.PyCapsule_GetPointer
_GET_POINTER.restype = ctypes.c_void_p
_GET_POINTER.argtypes = [ctypes.py_object, ctypes.c_char_p]
_DEVICE_TYPE = 8  # offset of DLTensor.device.device_type
_CUDA = 2


class Cuda:
    """A tensor in CPU memory that says it is in CUDA memory. Nothing may read it: there is no GPU."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.streams: list[int | None] = []

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CUDA, 0)

    def __dlpack__(self, stream: int | None = None) -> Any:
        self.streams.append(stream)
        capsule = self.x.__dlpack__()
        ctypes.c_int32.from_address(_GET_POINTER(capsule, b"dltensor") + _DEVICE_TYPE).value = _CUDA
        return capsule


X = torch.zeros(1, 2, 8, 16)
LSE = torch.zeros(1, 2, 8)


def test_memory_must_be_in_one_place() -> None:
    with pytest.raises(ValueError, match="k is in CPU memory and q is on CUDA device 0; they must be together"):
        kernels.attention_fwd(Cuda(X), X, Cuda(X))
    with pytest.raises(ValueError, match="lse is in CPU memory and q is on CUDA device 0"):
        kernels.attention_fwd(Cuda(X), Cuda(X), Cuda(X), out=Cuda(X), lse=LSE)
    layout = kernels.AttentionSpec(query_layout=np.zeros((2, 1, 8), np.int32), key_layout=np.zeros((2, 1, 8), np.int32))
    with pytest.raises(ValueError, match="query_layout is in CPU memory and q is on CUDA device 0"):
        kernels.attention_fwd(Cuda(X), Cuda(X), Cuda(X), layout)


def test_results_must_be_given() -> None:
    with pytest.raises(ValueError, match="out is None; on CUDA give an array to write to"):
        kernels.attention_fwd(Cuda(X), Cuda(X), Cuda(X))
    with pytest.raises(ValueError, match=r"out is float32 \[1, 2, 8, 15\]; it must be float32 \[1, 2, 8, 16\]"):
        kernels.attention_fwd(Cuda(X), Cuda(X), Cuda(X), out=Cuda(X[..., 1:].contiguous()), lse=Cuda(LSE))


def test_dtypes_of_cuda() -> None:
    double = Cuda(X.double())
    with pytest.raises(ValueError, match="q is float64; allowed: float32, float16, bfloat16"):
        kernels.attention_fwd(double, double, double)
    half = X.half()
    with pytest.raises(ValueError, match="q is float16; allowed: float32, float64, bfloat16"):
        kernels.attention_fwd(half, half, half)


def test_the_owner_of_an_array_is_told_the_stream() -> None:
    arrays = [Cuda(X) for _ in range(4)] + [Cuda(LSE)]
    q, k, v, out, lse = arrays
    # Without a GPU the call ends in an error, after all arrays were asked for.
    with pytest.raises((ValueError, RuntimeError)) as error:
        kernels.attention_fwd(q, k, v, out=out, lse=lse, stream=7)
    expected = "cudaGetDevice" if _native.built_with_cuda() else "this build has no CUDA kernels"
    if not torch.cuda.is_available():
        assert expected in str(error.value)
    assert all(array.streams == [7] for array in arrays)


def test_results_may_be_given_on_the_cpu() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 33, 16, generator=generator) for _ in range(3))
    out, lse = torch.empty(1, 2, 33, 16), torch.empty(1, 2, 33)
    given = kernels.attention_fwd(q, k, v, out=out, lse=lse)
    assert given == (out, lse)
    fresh, fresh_lse = kernels.attention_fwd(q, k, v)
    assert np.array_equal(out.numpy(), fresh)
    assert np.array_equal(lse.numpy(), fresh_lse)
    dq = torch.empty_like(q)
    written, dk, _ = kernels.attention_bwd(v, q, k, v, out, lse, dq=dq, dlse=torch.ones_like(lse))
    assert written is dq
    plain = kernels.attention_bwd(v, q, k, v, out, lse)
    assert not np.array_equal(dk, plain[1]), "dlse was left out"


def test_read_only_results_are_refused() -> None:
    x = np.zeros((1, 1, 4, 8), np.float32)
    out = np.zeros_like(x)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is read-only"):
        kernels.attention_fwd(x, x, x, out=out)


def test_rows_of_logits_must_be_in_cuda_memory() -> None:
    logits, labels, losses = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64), torch.zeros(3)
    with pytest.raises(ValueError, match="logits is in CPU memory; this kernel takes arrays in CUDA memory"):
        kernels.cross_entropy_rows(logits, labels, losses)
    with pytest.raises(ValueError, match=r"labels does not fit logits \[3, 5\]"):
        kernels.cross_entropy_rows(Cuda(logits), Cuda(labels[:2]), Cuda(losses))
    half, bias = Cuda(torch.zeros(3, 5, dtype=torch.bfloat16)), Cuda(torch.zeros(5))
    with pytest.raises(ValueError, match="bias is float32 with 1 dimensions; it must be bfloat16 with 1"):
        kernels.cross_entropy_rows(Cuda(logits), Cuda(labels), Cuda(losses), gradient=half, bias=bias)
