"""Tensor-core instructions of the PTX engine, against matrix products in float64."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.ptx import KernelError, Memory, Module, UnsupportedPtx
from tests.cuda.ptx.floats import bf16_to_f32, round_bf16
from tests.cuda.ptx.harness import assemble, kernel_module
from tests.cuda.ptx.types import Array

WARPS = 2
GROUP, THREAD = np.arange(32) // 4, np.arange(32) % 4


def bits_of(values: Array, kind: str) -> Array:
    """The bits of a matrix in its type; the values must be exact in it."""
    if kind == "bf16":
        return round_bf16(values)
    if kind == "f16":
        return values.astype(np.float16).view(np.uint16)
    return values.astype(np.float32).view(np.uint32)


# Where the PTX ISA puts element i of a lane's fragment: (row, column).
def a_place(i: int, kind: str) -> tuple[Array, Array]:
    if kind == "tf32":
        return GROUP + (8 if i % 2 else 0), THREAD + (4 if i >= 2 else 0)
    return GROUP + (0 if i in (0, 1, 4, 5) else 8), THREAD * 2 + (i & 1) + (8 if i >= 4 else 0)


def b_place(i: int, kind: str) -> tuple[Array, Array]:
    if kind == "tf32":
        return THREAD + 4 * i, GROUP
    return THREAD * 2 + (i & 1) + (8 if i >= 2 else 0), GROUP


def c_place(i: int) -> tuple[Array, Array]:
    return GROUP + (8 if i >= 2 else 0), THREAD * 2 + (i & 1)


def fragments(matrix: Array, count: int, place: object) -> Array:
    """Registers [lane, register] of a matrix of bits."""
    elements = np.stack([matrix[place(i)] for i in range(count)], 1)  # type: ignore[operator]
    return np.ascontiguousarray(elements).view(np.uint32)


def multiply(shape: str, kind: str, result: str, a: Array, b: Array, c: Array) -> Array:
    """Runs mma on registers filled by the layouts above, a and b [warp, row, column]."""
    k = int(shape.removeprefix("m16n8k"))
    inputs = []
    for warp in range(WARPS):
        left = fragments(bits_of(a[warp], kind), k // 2, lambda i: a_place(i, kind))
        right = fragments(bits_of(b[warp], kind), k // 4, lambda i: b_place(i, kind))
        bits = (
            c[warp].astype(np.float16).view(np.uint16)
            if result == "f16"
            else c[warp].astype(np.float32).view(np.uint32)
        )
        inputs.append(np.concatenate([left, right, fragments(bits, 4, c_place)], 1))
    words = np.concatenate(inputs)
    n_a, n_c = len(left[0]), 2 if result == "f16" else 4
    n_b = words.shape[1] - n_a - n_c
    registers = f"{'b32' if result == 'f16' else 'f32'}"
    body = f"\t.reg .b64 %x, %y;\n\t.reg .b32 %t, %r<16>;\n\t.reg .{registers} %c<8>;\n"
    body += "\tld.param.u64 %x, [x];\n\tld.param.u64 %y, [y];\n\tmov.u32 %t, %tid.x;\n"
    body += f"\tmad.wide.u32 %x, %t, {4 * words.shape[1]}, %x;\n\tmad.wide.u32 %y, %t, {4 * n_c}, %y;\n"
    for i in range(words.shape[1]):
        name = f"%r{i}" if i < n_a + n_b else f"%c{i - n_a - n_b}"
        body += f"\tld.global.{registers if name[1] == 'c' else 'b32'} {name}, [%x+{4 * i}];\n"
    lists = [", ".join(f"%r{i}" for i in part) for part in (range(n_a), range(n_a, n_a + n_b))]
    cs = ", ".join(f"%c{i}" for i in range(n_c))
    body += f"\tmma.sync.aligned.{shape}.row.col.{result}.{kind}.{kind}.{result} "
    body += f"{{{cs}}}, {{{lists[0]}}}, {{{lists[1]}}}, {{{cs}}};\n"
    body += "".join(f"\tst.global.{registers} [%y+{4 * i}], %c{i};\n" for i in range(n_c))
    memory = Memory()
    pointers = [memory.upload("x", words), memory.output("y", (WARPS, 32, n_c), np.uint32)]
    Module(assemble(body, ".param .u64 x, .param .u64 y")).run("test", 1, 32 * WARPS, 0, pointers, memory)
    elements = memory.download("y").view(np.float16 if result == "f16" else np.float32)
    out = np.zeros((WARPS, 16, 8))
    for warp in range(WARPS):
        for i in range(4):
            out[warp][c_place(i)] = elements[warp, :, i]
    return out


@pytest.mark.parametrize(
    ("shape", "kind", "result"),
    [
        ("m16n8k16", "bf16", "f32"),
        ("m16n8k16", "f16", "f32"),
        ("m16n8k16", "f16", "f16"),
        ("m16n8k8", "bf16", "f32"),
        ("m16n8k8", "f16", "f32"),
        ("m16n8k8", "f16", "f16"),
        ("m16n8k8", "tf32", "f32"),
        ("m16n8k4", "tf32", "f32"),
    ],
)
def test_products(shape: str, kind: str, result: str) -> None:
    k = int(shape.removeprefix("m16n8k"))
    random = np.random.default_rng(k)
    # Small integers: every product and sum is exact, so any misplaced element shows.
    a, b, c = (random.integers(-9, 10, (WARPS, *size)).astype(np.float64) for size in ((16, k), (k, 8), (16, 8)))
    assert np.array_equal(multiply(shape, kind, result, a, b, c), a @ b + c)


def test_sums_are_rounded_once() -> None:
    a, b, c = np.zeros((WARPS, 16, 16)), np.zeros((WARPS, 16, 8)), np.zeros((WARPS, 16, 8))
    a[:, :, 0], b[:, 0], c[:] = 2.0**-13, 2.0**-13, 1
    a[:, :, 5], b[:, 5] = 2.0**-13, 2.0**-13
    assert (multiply("m16n8k16", "bf16", "f32", a, b, c) == 1 + 2.0**-25).sum() == 0
    a[:, :, 6], b[:, 6] = 2.0**-12, 2.0**-11
    assert (multiply("m16n8k16", "bf16", "f32", a, b, c) == np.float32(1 + 2.0**-23 + 2.0**-25)).all()


def test_nan_stays_in_its_row() -> None:
    a, b, c = np.ones((WARPS, 16, 16)), np.ones((WARPS, 16, 8)), np.zeros((WARPS, 16, 8))
    a[0, 3, 7] = np.nan
    result = multiply("m16n8k16", "bf16", "f32", a, b, c)
    assert np.isnan(result[0, 3]).all()
    assert np.isnan(result).sum() == 8


@pytest.mark.parametrize("transposes", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count: int, transposes: bool) -> None:
    x = np.random.default_rng(0).integers(0, 2**16, (32, 8), dtype=np.uint16)
    order = np.random.default_rng(1).permutation(32)
    registers = ", ".join(f"%r{i}" for i in range(count))
    body = "\t.reg .b64 %x, %y, %a;\n\t.reg .b32 %t, %s, %r<8>;\n\tld.param.u64 %x, [x];\n\tld.param.u64 %y, [y];\n"
    body += "\tmov.u32 %t, %tid.x;\n\tmov.u32 %s, rows;\n\tmad.lo.u32 %s, %t, 16, %s;\n\tmad.wide.u32 %a, %t, 16, %x;\n"
    body += "\tld.global.v4.u32 {%r4, %r5, %r6, %r7}, [%a];\n"
    body += "\tst.shared.v4.u32 [%s], {%r4, %r5, %r6, %r7};\n\tbar.warp.sync -1;\n"
    # Row r of the matrices is row order[r] of the buffer.
    body += "\tmad.wide.u32 %a, %t, 4, %x;\n\tld.global.u32 %r4, [%a+512];\n"
    body += "\tmov.u32 %s, rows;\n\tmad.lo.u32 %s, %r4, 16, %s;\n"
    body += f"\tldmatrix.sync.aligned.m8n8.x{count}{'.trans' if transposes else ''}.shared.b16 {{{registers}}}, [%s];\n"
    body += "".join(
        f"\tmad.wide.u32 %a, %t, {4 * count}, %y;\n\tst.global.b32 [%a+{4 * i}], %r{i};\n" for i in range(count)
    )
    memory = Memory()
    words = np.concatenate([x.reshape(-1).view(np.uint32), order.astype(np.uint32)])
    pointers = [memory.upload("x", words), memory.output("y", (32, count), np.uint32)]
    module = Module(assemble(body, ".param .u64 x, .param .u64 y", ".shared .align 16 .b8 rows[512];"))
    module.run("test", 1, 32, 0, pointers, memory)
    got = memory.download("y").view(np.uint16).reshape(32, count, 2)
    for i in range(count):
        matrix = x[order[8 * i : 8 * i + 8]]
        matrix = matrix.T if transposes else matrix
        for lane in range(32):
            expected = matrix[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2]
            assert np.array_equal(got[lane, i], expected)


def tile(module: Module, kind: str, transposed: bool, seed: int | None = None) -> tuple[Array, Array]:
    """(what the kernel of tile.cu gives, what it should give)"""
    random = np.random.default_rng(2)
    a, b = random.standard_normal((2, 16, 16))
    left, right = (round_bf16(m) if kind == "bf16" else m.astype(np.float16).view(np.uint16) for m in (a, b))
    a, b = ((bf16_to_f32(m) if kind == "bf16" else m.view(np.float16)).astype(np.float64) for m in (left, right))
    memory = Memory()
    pointers = [memory.upload("a", left), memory.upload("b", right), memory.output("c", (16, 16), np.float32)]
    name = f"tile<{'__nv_bfloat16' if kind == 'bf16' else '__half'}, {str(transposed).lower()}>"
    module.run(name, 1, 32, 0, pointers, memory, seed)
    start = np.array([[1.0, 2.0], [3.0, 4.0]]).repeat(8, 0)[:, np.arange(16) % 2]
    return memory.download("c"), start + a @ (b if transposed else b.T)


@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_tile_compiled_by_nvcc(kind: str, transposed: bool, seed: int | None) -> None:
    got, expected = tile(kernel_module("tile"), kind, transposed, seed)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_operands_swapped_in_the_assembly_string_show() -> None:
    module = kernel_module("tile", "SWAPPED")
    got, expected = tile(module, "bf16", False)
    assert np.abs(got - expected).max() > 0.1
    got, expected = tile(module, "f16", False)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_ldmatrix_checks_its_rows() -> None:
    body = "\t.reg .b32 %t, %s, %r<4>;\n\tmov.u32 %t, %tid.x;\n\tmov.u32 %s, rows;\n\tmad.lo.u32 %s, %t, {step}, %s;\n"
    body += "\tst.shared.b32 [%s], %t;\n\tldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1, %r2, %r3}, [%s];"
    for step, words in (
        (16, "uninitialised read: load of 16 bytes"),
        (20, "misaligned|uninitialised"),
        (4, "uninitialised|misaligned"),
    ):
        module = Module(assemble(body.replace("{step}", str(step)), "", ".shared .align 16 .b8 rows[1024];"))
        with pytest.raises(KernelError, match=words):
            module.run("test", 1, 32, 0, [], Memory())


REGISTERS = "{%f0,%f1,%f2,%f3}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, {%f0,%f1,%f2,%f3}"


@pytest.mark.parametrize(
    "body",
    [
        f"mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {REGISTERS};",
        f"mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32 {REGISTERS};",
        f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.f16.f32 {REGISTERS};",
        f"mma.sync.aligned.m16n8k16.row.col.satfinite.f32.f16.f16.f32 {REGISTERS};",
        f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {REGISTERS.replace(',%r3', '')};",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16 {%r0,%r1,%r2}, [%r3];",
        "ldmatrix.sync.aligned.m8n16.x1.shared.b8x16.b6x16_p32 {%r0}, [%r3];",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r0};",
        "wgmma.fence.sync.aligned;",
    ],
)
def test_unknown_forms(body: str) -> None:
    text = assemble(f"\t.reg .b32 %r<8>;\n\t.reg .f32 %f<4>;\n\t{body}")
    with pytest.raises(UnsupportedPtx) as caught:
        Module(text).run("test", 1, 32, 0, [], Memory())
    assert body.rstrip(";") in str(caught.value)
