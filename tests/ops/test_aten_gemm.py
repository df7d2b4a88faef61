"""The products that CUDA kernels take from torch, run on the CPU: shapes, strides, transposes and references."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

TORCH = Path(sysconfig.get_path("purelib")) / "torch"


@pytest.fixture(scope="module", autouse=True)
def library(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The op of aten_gemm_check.cpp, compiled as csrc/ops is."""
    target = tmp_path_factory.mktemp("aten_gemm") / "aten_gemm_check.so"
    command = ["g++", "-std=gnu++20", "-O1", "-fPIC", "-shared", "-fvisibility=hidden"]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
    command += [f"-I{root / 'csrc'}", f"-I{root / 'csrc' / 'kernels'}", "-isystem", str(TORCH / "include")]
    command += [str(root / "tests" / "ops" / "aten_gemm_check.cpp"), "-o", str(target)]
    command += [f"-L{TORCH / 'lib'}", "-ltorch_cpu"]
    subprocess.run(command, check=True, timeout=300)
    torch.ops.load_library(str(target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("transpose_a", "transpose_b"), [(False, False), (False, True), (True, False)])
def test_product(transpose_a: bool, transpose_b: bool, dtype: torch.dtype) -> None:
    m, n, k = 5, 7, 6
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(*((k, m) if transpose_a else (m, k)), generator=generator).to(dtype)
    b = torch.randn(*((n, k) if transpose_b else (k, n)), generator=generator).to(dtype)
    wide = torch.full((m, n + 3), 9.0, dtype=dtype)  # rows further apart than they are long
    torch.ops.aten_gemm_check.multiply(a, b, wide[:, :n], transpose_a, transpose_b, m, n, k)
    expected = torch.mm(a.t() if transpose_a else a, b.t() if transpose_b else b)
    assert torch.equal(wide[:, :n], expected)
    assert (wide[:, n:] == 9.0).all()


def test_float32_results_of_bfloat16() -> None:
    """torch has this product on CUDA alone; here its place is taken, which shows what it is called with."""
    calls = []

    def product(a: torch.Tensor, b: torch.Tensor, out_dtype: torch.dtype, *, out: torch.Tensor) -> torch.Tensor:
        calls.append(out_dtype)
        return out.copy_(a.float() @ b.float())

    a, b, c = torch.randn(3, 4).bfloat16(), torch.randn(4, 5).bfloat16(), torch.empty(3, 5)
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("mm.dtype_out", product, "CPU")
        torch.ops.aten_gemm_check.multiply(a, b, c, False, False, 3, 5, 4)
    assert calls == [torch.float32]
    assert torch.equal(c, a.float() @ b.float())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_nothing_is_kept() -> None:
    """A reference that outlives its call is a tensor of some 200 bytes."""
    calls = 50_000
    a, b, c = torch.ones(4, 4), torch.ones(4, 4), torch.empty(4, 4)
    multiply = torch.ops.aten_gemm_check.multiply.default
    for count in (1000, calls):
        before = resident_bytes()
        for _ in range(count):
            multiply(a, b, c, False, False, 4, 4, 4)
    assert resident_bytes() - before < calls * 40


def test_what_aten_cannot_is_refused() -> None:
    a, b, c = torch.ones(2, 2), torch.ones(2, 2, dtype=torch.bfloat16), torch.empty(2, 2)
    with pytest.raises(RuntimeError, match="aten::mm has no such product"):
        torch.ops.aten_gemm_check.multiply(a, b, c, False, False, 2, 2, 2)
