"""Integer and bit instructions of the PTX engine, against Python's own integers on edge values."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import numpy as np
import pytest

from tests.cuda.ptx import KernelError, UnsupportedPtx
from tests.cuda.ptx.harness import compute
from tests.cuda.ptx.types import DTYPES, Array

TYPES = ["u16", "s16", "u32", "s32", "u64", "s64"]


def edges(type_name: str) -> list[int]:
    limits = np.iinfo(DTYPES[type_name])
    middle = 1 << (limits.bits // 2)
    near = {0, 1, 2, 7, middle - 1, middle, middle + 1, limits.max // 3, limits.max - 1, limits.max}
    return sorted(near | ({-1, -2, -7, -middle, limits.min, limits.min + 1} if limits.min else set()))


def pairs(type_name: str) -> tuple[Array, Array]:
    both = list(product(edges(type_name), repeat=2))
    dtype = DTYPES[type_name]
    return np.array([a for a, _ in both], dtype), np.array([b for _, b in both], dtype)


def wrapped(values: list[int], type_name: str) -> Array:
    bits = 8 * DTYPES[type_name].itemsize
    unsigned = np.array([value & (1 << bits) - 1 for value in values], f"u{bits // 8}")
    return unsigned.view(DTYPES[type_name])


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY: dict[str, Callable[[int, int], int]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("type_name", TYPES)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, type_name: str) -> None:
    a, b = pairs(type_name)
    result = compute(f"{name}.{type_name} %out, %a, %b;", a.dtype, a=a, b=b)
    expected = [BINARY[name](x, y) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    assert np.array_equal(result, wrapped(expected, type_name))


@pytest.mark.parametrize("type_name", TYPES)
def test_high_and_wide_products(type_name: str) -> None:
    a, b = pairs(type_name)
    exact = [x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)]
    bits = 8 * a.itemsize
    high = compute(f"mul.hi.{type_name} %out, %a, %b;", a.dtype, a=a, b=b)
    assert np.array_equal(high, wrapped([value >> bits for value in exact], type_name))
    if bits < 64:
        wide = type_name[0] + str(2 * bits)
        result = compute(f"mul.wide.{type_name} %out, %a, %b;", DTYPES[wide], a=a, b=b)
        assert np.array_equal(result, wrapped(exact, wide))
        c = np.arange(len(a)).astype(DTYPES[wide]) * 1000
        added = compute(f"mad.wide.{type_name} %out, %a, %b, %c;", DTYPES[wide], a=a, b=b, c=c)
        assert np.array_equal(added, wrapped([e + int(k) for e, k in zip(exact, c, strict=True)], wide))


@pytest.mark.parametrize("type_name", TYPES)
def test_division_rounds_towards_zero(type_name: str) -> None:
    a, b = pairs(type_name)
    a, b = a[b != 0], b[b != 0]
    listed = list(zip(a.tolist(), b.tolist(), strict=True))
    quotient = compute(f"div.{type_name} %out, %a, %b;", a.dtype, a=a, b=b)
    assert np.array_equal(quotient, wrapped([truncated(x, y) for x, y in listed], type_name))
    rest = compute(f"rem.{type_name} %out, %a, %b;", a.dtype, a=a, b=b)
    assert np.array_equal(rest, wrapped([x - truncated(x, y) * y for x, y in listed], type_name))


def test_division_by_zero_is_reported() -> None:
    a = np.arange(40, dtype=np.int32)
    with pytest.raises(KernelError, match=r"division by zero.*\n.*thread \(7, 0, 0\)"):
        compute("div.s32 %out, 5, %a;", np.int32, a=a - 7)
    assert (compute("mov.s32 %out, 1;\nsetp.ne.s32 %p, %a, 0;\n@%p div.s32 %out, %a, %a;", np.int32, a=a) == 1).all()


def test_saturating_add_and_unary() -> None:
    a, b = pairs("s32")
    result = compute("add.sat.s32 %out, %a, %b;", np.int32, a=a, b=b)
    assert np.array_equal(result, np.clip(a.astype(np.int64) + b, -(2**31), 2**31 - 1))
    assert np.array_equal(compute("neg.s32 %out, %a;", np.int32, a=a), wrapped([-x for x in a.tolist()], "s32"))
    assert np.array_equal(compute("abs.s32 %out, %a;", np.int32, a=a), wrapped([abs(x) for x in a.tolist()], "s32"))
    listed = list(zip(a.tolist(), b.tolist(), strict=True))
    expected = [abs(x - y) + y for x, y in listed]
    assert np.array_equal(compute("sad.s32 %out, %a, %b, %b;", np.int32, a=a, b=b), wrapped(expected, "s32"))


def test_carry_chains() -> None:
    a, b = pairs("u64")
    low, high = (x[::-1].copy() for x in (a, b))
    exactly: dict[str, Callable[[int, int], int]] = {"add": lambda x, y: x + y, "sub": lambda x, y: x - y}
    for name, exact in exactly.items():
        body = f".reg .b64 %low;\n{name}.cc.u64 %low, %a, %low_in;\n{name}c.u64 %out, %b, %high_in;"
        result = compute(body, np.uint64, a=a, b=b, low_in=low, high_in=high)
        left = [x + (y << 64) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        right = [x + (y << 64) for x, y in zip(low.tolist(), high.tolist(), strict=True)]
        assert np.array_equal(result, wrapped([exact(x, y) >> 64 for x, y in zip(left, right, strict=True)], "u64"))


def test_a_carry_ripples_through_three_words() -> None:
    a = np.array([0xFFFFFFFF, 0xFFFFFFFF, 5], np.uint32)
    low = np.array([1, 0, 1], np.uint32)
    # The middle words add up to all ones, so that only the carry from below makes one.
    body = "mov.u32 %t0, %low;\nadd.cc.u32 %t1, %a, %t0;\naddc.cc.u32 %t2, %a, 0;\naddc.u32 %out, 7, 0;"
    assert compute(body, np.uint32, a=a, low=low).tolist() == [8, 7, 7]


@pytest.mark.parametrize("type_name", ["b16", "b32", "b64", "u32", "s16", "s32", "s64"])
def test_shifts_by_any_amount(type_name: str) -> None:
    dtype = DTYPES[type_name]
    bits = 8 * dtype.itemsize
    values = np.array(edges(type_name.replace("b", "u")), dtype)
    amounts = np.array([0, 1, 7, bits - 1, bits, bits + 1, 2**31, 2**32 - 1], np.uint32)
    a, n = (grid.reshape(-1) for grid in np.meshgrid(values, amounts))
    listed = list(zip(a.tolist(), n.tolist(), strict=True))
    right = compute(f"shr.{type_name} %out, %a, %n;", dtype, a=a, n=n)
    assert np.array_equal(right, wrapped([x >> min(k, 100) for x, k in listed], "u" + type_name[1:]).view(dtype))
    if type_name[0] == "b":
        left = compute(f"shl.{type_name} %out, %a, %n;", dtype, a=a, n=n)
        assert np.array_equal(left, wrapped([x << min(k, 100) for x, k in listed], "u" + type_name[1:]))
        literal = compute(f"shl.{type_name} %out, %a, 3;", dtype, a=a)
        assert np.array_equal(literal, wrapped([x << 3 for x in a.tolist()], "u" + type_name[1:]))


def test_funnel_shifts() -> None:
    a, b = pairs("u32")
    n = np.arange(len(a), dtype=np.uint32) % 70
    listed = list(zip(a.tolist(), b.tolist(), n.tolist(), strict=True))
    amounts: dict[str, Callable[[int], int]] = {"wrap": lambda k: k & 31, "clamp": lambda k: min(k, 32)}
    for mode, amount in amounts.items():
        left = compute(f"shf.l.{mode}.b32 %out, %a, %b, %n;", np.uint32, a=a, b=b, n=n)
        assert left.tolist() == [((y << 32 | x) << amount(k) >> 32) & 0xFFFFFFFF for x, y, k in listed]
        right = compute(f"shf.r.{mode}.b32 %out, %a, %b, %n;", np.uint32, a=a, b=b, n=n)
        assert right.tolist() == [(y << 32 | x) >> amount(k) & 0xFFFFFFFF for x, y, k in listed]


@pytest.mark.parametrize("type_name", ["u32", "s32", "u64", "s64"])
def test_bit_fields(type_name: str) -> None:
    dtype = DTYPES[type_name]
    bits = 8 * dtype.itemsize
    values = [0x5A5AA5A5DEADBEEF >> (64 - bits), (1 << bits) - 2, 1 << (bits - 1)]
    spots = [0, 1, 5, bits - 1, bits, 200]
    cases = list(product(values, spots, [0, 1, 8, bits - 1, bits, 255]))
    a = wrapped([value for value, _, _ in cases], type_name)
    start, length = (np.array([case[i] for case in cases], np.uint32) for i in (1, 2))

    def extract(value: int, first: int, count: int) -> int:
        # The definition of the PTX ISA, bit by bit.
        sign = 0
        if type_name[0] == "s" and count:
            sign = value >> min(first + count - 1, bits - 1) & 1
        inside = range(min(count, bits)) if count else range(0)
        result = sum((value >> (first + i) & 1) << i for i in inside if first + i < bits)
        fill = [i for i in range(bits) if i >= count or first + i >= bits]
        return result | sum(sign << i for i in fill)

    got = compute(f"bfe.{type_name} %out, %a, %start, %length;", dtype, a=a, start=start, length=length)
    assert np.array_equal(got, wrapped([extract(*case) for case in cases], type_name))
    if type_name[0] == "u":
        base = (1 << bits) // 3

        def insert(value: int, first: int, count: int) -> int:
            mask = sum(1 << i for i in range(bits) if first <= i < first + count)
            return (base & ~mask) | (value << first & mask)

        b = wrapped([base] * len(a), type_name)
        body = f"bfi.b{bits} %out, %a, %base, %start, %length;"
        got = compute(body, dtype, a=a, base=b, start=start, length=length)
        assert np.array_equal(got, wrapped([insert(*case) for case in cases], type_name))


def test_counting_bits() -> None:
    for type_name, bits in (("u32", 32), ("u64", 64)):
        values = [0, 1, 2, 3, 5, 1 << 31, (1 << bits) - 1, (1 << bits) // 3, (1 << 53) + 1 if bits == 64 else 77]
        a = np.array(values, DTYPES[type_name])
        assert compute(f"popc.b{bits} %out, %a;", np.uint32, a=a).tolist() == [v.bit_count() for v in values]
        assert compute(f"clz.b{bits} %out, %a;", np.uint32, a=a).tolist() == [bits - v.bit_length() for v in values]
        backwards = [int(f"{v:0{bits}b}"[::-1], 2) for v in values]
        assert compute(f"brev.b{bits} %out, %a;", a.dtype, a=a).tolist() == backwards
        found = compute(f"bfind.u{bits} %out, %a;", np.uint32, a=a).tolist()
        assert found == [(v.bit_length() - 1) & 0xFFFFFFFF for v in values]
    signed = np.array([0, -1, -2, 5, -(2**31)], np.int32)
    assert compute("bfind.s32 %out, %a;", np.int32, a=signed).tolist() == [-1, -1, 0, 2, 30]
    assert compute("bfind.shiftamt.s32 %out, %a;", np.int32, a=signed).tolist() == [-1, -1, 31, 29, 1]
    nth = compute(
        "fns.b32 %out, %a, 1, %n;", np.uint32, a=np.full(5, 0b10110, np.uint32), n=np.arange(-1, 4).astype(np.int32)
    )
    assert nth.tolist() == [1, 1, 1, 2, 4]


def test_permutations_and_logic_tables() -> None:
    a = np.array([0x33221180], np.uint32)
    b = np.array([0x77665544], np.uint32)
    for selector, expected in ((0x7531, 0x77553311), (0x3210, 0x33221180), (0x8888, 0xFFFFFFFF), (0x4C19, 0x44001100)):
        got = compute(f"prmt.b32 %out, %a, %b, {selector};", np.uint32, a=a, b=b)
        assert int(got[0]) == expected, hex(selector)
    x, y, z = (np.array([value], np.uint32) for value in (0xF0F0F0F0, 0xCCCCCCCC, 0xAAAAAAAA))
    for table in (0, 0x80, 0xFE, 0x96, 0xE8, 0x1D, 0xFF):
        got = compute(f"lop3.b32 %out, %x, %y, %z, {table};", np.uint32, x=x, y=y, z=z)
        assert int(got[0]) & 0xFF == table
    bits = np.array([0, 5], np.uint32)
    assert compute("cnot.b32 %out, %a;", np.uint32, a=bits).tolist() == [1, 0]
    assert compute("not.b32 %out, %a;", np.uint32, a=bits).tolist() == [0xFFFFFFFF, 0xFFFFFFFA]


@pytest.mark.parametrize("type_name", TYPES)
def test_comparisons(type_name: str) -> None:
    a, b = pairs(type_name)
    relations = {"eq": a == b, "ne": a != b, "lt": a < b, "le": a <= b, "gt": a > b, "ge": a >= b}
    if type_name[0] == "u":
        relations |= {"lo": a < b, "ls": a <= b, "hi": a > b, "hs": a >= b}
    for name, expected in relations.items():
        body = f"setp.{name}.{type_name} %p, %a, %b;\nselp.u32 %out, 1, 0, %p;"
        assert np.array_equal(compute(body, np.uint32, a=a, b=b), expected), name
    body = f"setp.lt.{type_name} %p|%q, %a, %b;\nselp.u32 %out, 1, 0, %q;"
    assert np.array_equal(compute(body, np.uint32, a=a, b=b), ~(a < b))
    body = f"setp.eq.{type_name} %q, %a, 0;\nsetp.lt.and.{type_name} %p, %a, %b, !%q;\nselp.u32 %out, 1, 0, %p;"
    assert np.array_equal(compute(body, np.uint32, a=a, b=b), (a < b) & (a != 0))


def test_set_and_selection_by_sign() -> None:
    a, b = pairs("s32")
    result = compute("set.lt.u32.s32 %out, %a, %b;", np.uint32, a=a, b=b)
    assert np.array_equal(result, np.where(a < b, 0xFFFFFFFF, 0))
    result = compute("set.lt.f32.s32 %out, %a, %b;", np.float32, a=a, b=b)
    assert np.array_equal(result, (a < b).astype(np.float32))
    assert np.array_equal(compute("slct.s32.s32 %out, %a, 7, %b;", np.int32, a=a, b=b), np.where(b >= 0, a, 7))


@pytest.mark.parametrize(
    "body",
    [
        "add.relu.s32 %out, %a, %a;",
        "mad24.lo.s32 %out, %a, %a, %a;",
        "add.s32 %out, %a, 4294967296;",
        "add.s64 %out, %a, %a;",
        "shl.s32 %out, %a, 1;",
        "mul.s32 %out, %a, %a;",
        "add.s32 %out, %a, 0f3F800000;",
        "mov.u32 %out, %clock;",
        "prmt.b32.f4e %out, %a, %a, 1;",
        "setp.lo.s32 %p, %a, 1;",
        "add.s32 %out, %a, %a, %a;",
        "add.s32 %out, %a, %nosuch;",
    ],
)
def test_unknown_forms_are_errors_that_name_the_instruction(body: str) -> None:
    with pytest.raises(UnsupportedPtx) as caught:
        compute(body, np.int32, a=np.zeros(1, np.int32))
    assert body.rstrip(";") in str(caught.value)
    assert "PTX line" in str(caught.value)
