"""The PTX engine on what nvcc makes of ordinary CUDA code."""

from __future__ import annotations

import struct
from collections.abc import Callable
from math import erf, expm1, fmod, log1p

import numpy as np
import pytest

from tests.cuda.ptx import Memory, Module
from tests.cuda.ptx.floats import bf16_to_f32, round_bf16
from tests.cuda.ptx.harness import INCLUDES, KERNELS, kernel_module
from tests.cuda.ptx.source import CompileError, compile_ptx
from tests.cuda.ptx.types import Array

ORDERS = (None, 0, 1)
TABLE = np.arange(1, 7, dtype=np.float32) / 8


@pytest.fixture(scope="module")
def module() -> Module:
    return kernel_module("language")


def problem(x: int, y: int, count: int) -> bytes:
    """The struct Problem of language.cu."""
    return struct.pack("<QQi6f4xqqq", x, y, count, *TABLE, 0, 2, 0)


@pytest.mark.parametrize("seed", ORDERS)
def test_struct_parameters_and_local_arrays(module: Module, seed: int | None) -> None:
    memory = Memory()
    x = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    pointers = memory.upload("x", x), memory.output("y", 200, np.float32)
    module.run("structure", 2, 64, 0, [problem(*pointers, 100), 4], memory, seed)
    y = memory.download("y")
    assert np.array_equal(y[::2], x * TABLE[(np.arange(100) + 4) % 6])
    assert memory.unwritten("y")[1::2].all()


@pytest.mark.parametrize("seed", ORDERS)
def test_calls(module: Module, seed: int | None) -> None:
    memory = Memory()
    x = np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)
    pointers = memory.upload("x", x), memory.output("y", 40, np.float32)
    module.run("calls", 1, 40, 0, [problem(*pointers, 0), 11], memory, seed)
    rows = x.astype(np.float64)
    rows[:, 11 % 8] += 1
    i = np.arange(40)
    v = rows[i, (i + 11) % 8]
    total = v.copy()
    for k in range(11):
        total = total * v + TABLE[k % 6]
    other = rows[i, i % 8]
    np.testing.assert_allclose(memory.download("y"), (total + other) * (total - other), rtol=1e-4)


@pytest.mark.parametrize("seed", ORDERS)
def test_switches(module: Module, seed: int | None) -> None:
    x = np.arange(-2, 62, dtype=np.int32) % 12
    memory = Memory()
    pointers = [memory.upload("x", x), memory.output("y", 64, np.int32)]
    module.run("switches", 1, 64, 0, pointers, memory, seed)

    def one(v: int, t: int) -> int:
        known = {0: 11, 1: 7 + t, 2: -3 ^ 0x55, 3: 3 ^ 0x55, 4: (4 * 12345).bit_count(), 5: -5, 6: 6 << 9, 9: 1}
        return known.get(v, 1000)

    assert memory.download("y").tolist() == [one(int(v), t) for t, v in enumerate(x)]


@pytest.mark.parametrize("seed", ORDERS)
def test_integers(module: Module, seed: int | None) -> None:
    n = 40
    x = np.random.default_rng(2).integers(-(2**63), 2**63 - 1, n)
    x[:4] = [0, -1, 2**62, -(2**63)]
    memory = Memory()
    module.run("integers", 1, n, 0, [memory.upload("x", x), memory.output("y", (9, n), np.int64), n], memory, seed)
    y = memory.download("y").tolist()
    values = x.tolist()

    def cut(a: int, b: int) -> int:
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)

    def low(v: int, bits: int) -> int:
        v &= (1 << bits) - 1
        return v - (1 << bits) if v >> (bits - 1) else v

    rows = [
        [(v * w + 17) >> 64 for v, w in zip(values, [*values[1:], values[0]], strict=True)],
        [cut(v, 7) for v in values],
        [v - cut(v, n + 3) * (n + 3) for v in values],
        [low(v, 16) * (3, 1, 4, 1, 5)[i % 5] for i, v in enumerate(values)],
        [low(int(f"{v & (1 << 64) - 1:064b}"[::-1], 2), 64) for v in values],
        [cut(low(v, 32), n - 100) for v in values],
        [(v & -v).bit_length() for v in values],
        [(v & 0xFFFFFFFF) % 10 for v in values],
        [7 + sum(range(n))] * n,
    ]
    for i, row in enumerate(rows):
        assert y[i] == row, i


FUNCTIONS: list[Callable[[Array], Array]] = [
    np.exp,
    np.exp2,
    lambda v: np.log(np.abs(v)),
    lambda v: np.log2(np.abs(v)),
    np.tanh,
    np.sin,
    np.cos,
    lambda v: 1 / np.sqrt(np.abs(v)),
    lambda v: 1 / v,
    lambda v: v / 3,
    np.vectorize(erf),
    np.vectorize(lambda v: log1p(abs(v))),
    np.vectorize(expm1),
    lambda v: np.abs(v) ** np.float64(np.float32(1.7)),
    lambda v: np.sqrt(np.abs(v)),
    np.vectorize(lambda v: fmod(v, 1.5)),
]


@pytest.mark.parametrize("fast", [False, True])
def test_mathematical_functions(fast: bool) -> None:
    # Their polynomials and reductions use fused, directed and saturating arithmetic, and tables in memory.
    options = ["--use_fast_math"] if fast else []
    module = Module(compile_ptx(KERNELS / "language.cu", includes=INCLUDES, options=options))
    random = np.random.default_rng(3)
    x = np.concatenate([random.standard_normal(200) * 3, random.uniform(-80, 80, 100), [0.25, 1, 30, -30]]).astype(
        np.float32
    )
    memory = Memory()
    pointers = [memory.upload("x", x), memory.output("y", (16, len(x)), np.float32)]
    module.run("functions", 3, 128, 0, [*pointers, len(x)], memory)
    y = memory.download("y")
    for i, function in enumerate(FUNCTIONS):
        expected = function(x.astype(np.float64))
        # CUDA's guide gives at most 4 ulp for these functions, about 2^-21 absolute or relative for the fast ones.
        bound = (
            2.0**-20 * np.maximum(np.abs(expected), 1) * np.maximum(np.abs(x), 1)
            if fast
            else 4 * np.spacing(np.abs(expected).astype(np.float32)).astype(np.float64)
        )
        with np.errstate(invalid="ignore"):
            assert (np.abs(y[i] - expected) <= bound).all(), i


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_half_types(module: Module, kind: str) -> None:
    random = np.random.default_rng(4)

    def encode(v: Array) -> Array:
        return round_bf16(v) if kind == "bf16" else v.astype(np.float16).view(np.uint16)

    def decode(v: Array) -> Array:
        return (bf16_to_f32(v) if kind == "bf16" else v.view(np.float16)).astype(np.float64)

    a_bits, b_bits = (encode(random.standard_normal(64)) for _ in range(2))
    memory = Memory()
    pointers = [memory.upload("a", a_bits), memory.upload("b", b_bits), memory.output("y", (7, 64), np.uint16)]
    module.run(f"halves<{'__nv_bfloat16' if kind == 'bf16' else '__half'}>", 1, 64, 0, [*pointers, 64], memory)
    a, b = decode(a_bits), decode(b_bits)
    scaled = (a.astype(np.float32) * np.float32(1.1)).astype(np.float64)
    expected = [a + b, a * b, a / b, a * b + a, np.maximum(a, b), np.where(a < b, -a, b), scaled]
    y = decode(memory.download("y"))
    for i, row in enumerate(expected):
        tolerance = 2.0**-8 if kind == "bf16" and i == 2 else 0
        np.testing.assert_allclose(y[i], decode(encode(row)), rtol=tolerance, err_msg=str(i))


@pytest.mark.parametrize("seed", ORDERS)
def test_block_sum(module: Module, seed: int | None) -> None:
    x = np.arange(1000, dtype=np.float32)
    memory = Memory()
    module.run("block_sum", 3, 96, 0, [memory.upload("x", x), memory.output("y", 3, np.float32), 1000], memory, seed)
    assert memory.download("y").sum() == x.sum()


def test_errors_of_the_compiler_are_shown(tmp_path: object) -> None:
    from pathlib import Path

    broken = Path(str(tmp_path)) / "broken.cu"
    broken.write_text("__global__ void f() { undefined_name; }\n")
    with pytest.raises(CompileError, match='identifier "undefined_name" is undefined'):
        compile_ptx(broken)
