"""What the tests of the engine share: one-instruction kernels, exact rounding, and sources with a marked bug."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from tests.cuda.ptx.memory import Memory
from tests.cuda.ptx.module import Module
from tests.cuda.ptx.source import compile_ptx
from tests.cuda.ptx.types import Array

KERNELS = Path(__file__).parent / "kernels"
# The folder that kernels include each other from.
INCLUDES = (Path(__file__).parents[3] / "csrc" / "kernels",)
_REGISTERS = {
    np.dtype(np.float32): "f32",
    np.dtype(np.float64): "f64",
    np.dtype(np.int16): "s16",
    np.dtype(np.int32): "s32",
    np.dtype(np.int64): "s64",
    np.dtype(np.uint16): "b16",
    np.dtype(np.uint32): "b32",
    np.dtype(np.uint64): "b64",
    np.dtype(np.float16): "b16",
    np.dtype(np.uint8): "u8",
    np.dtype(np.int8): "s8",
}
_HEADER = ".version 9.0\n.target sm_80\n.address_size 64\n"


def assemble(body: str, parameters: str = "", declarations: str = "") -> str:
    """A PTX text with one kernel `test` of this body."""
    return f"{_HEADER}{declarations}\n.visible .entry test({parameters})\n{{\n{body}\n\tret;\n}}\n"


def compute(body: str, output: DTypeLike, seed: int | None = None, /, **inputs: Array) -> Array:
    """Runs PTX once for each element: input registers have the names of the arguments, `%out` is the result.

    `%p`, `%q` are predicates and `%t0` to `%t3` 32-bit temporaries.
    """
    count = len(next(iter(inputs.values())))
    output = np.dtype(output)
    lines = ["\t.reg .pred %p, %q;", "\t.reg .b32 %element, %block, %t<4>;", "\t.reg .b64 %at, %index;"]
    lines.append(f"\t.reg .{_REGISTERS[output]} %out;")
    lines += ["\tmov.u32 %element, %tid.x;", "\tmov.u32 %block, %ctaid.x;"]
    lines += ["\tmad.lo.u32 %element, %block, 128, %element;", f"\tsetp.ge.u32 %p, %element, {count};", "\t@%p ret;"]
    lines.append("\tcvt.u64.u32 %index, %element;")
    memory, parameters, values = Memory(), [], []
    for name, array in inputs.items():
        type_name = _REGISTERS[array.dtype]
        lines.append(f"\t.reg .{type_name} %{name};")
        lines += [f"\tld.param.u64 %at, [in_{name}];", f"\tmad.lo.u64 %at, %index, {array.itemsize}, %at;"]
        lines.append(f"\tld.global.{type_name} %{name}, [%at];")
        parameters.append(f".param .u64 in_{name}")
        values.append(memory.upload(name, array))
    lines += ["\t" + line for line in body.split("\n")]
    lines += ["\tld.param.u64 %at, [result];", f"\tmad.lo.u64 %at, %index, {output.itemsize}, %at;"]
    lines.append(f"\tst.global.{_REGISTERS[output]} [%at], %out;")
    parameters.append(".param .u64 result")
    values.append(memory.output("result", count, output))
    module = Module(assemble("\n".join(lines), ", ".join(parameters)))
    module.run("test", (count + 127) // 128, 128, 0, values, memory, seed)
    assert not memory.unwritten("result").any()
    return memory.download("result")


@dataclass(frozen=True)
class Format:
    """A binary floating-point format: bits of the significand with the leading one, and the exponents' range."""

    precision: int
    smallest: int
    largest: int


FORMATS = {
    "f16": Format(11, -14, 15),
    "bf16": Format(8, -126, 127),
    "f32": Format(24, -126, 127),
    "tf32": Format(11, -126, 127),
}


def round_exactly(value: Fraction, kind: str, rounding: str = "rn") -> float:
    """Rounds a number to a format, in integers; overflow goes where the rounding says."""
    form = FORMATS[kind]
    if value == 0:
        return 0.0
    magnitude = abs(value)
    exponent = max(math.floor(math.log2(magnitude)) if magnitude >= Fraction(1, 2**1000) else -1000, form.smallest)
    while exponent > form.smallest and magnitude < Fraction(2) ** exponent:
        exponent -= 1
    while magnitude >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - form.precision + 1)
    whole, rest = divmod(magnitude / unit, 1)
    if rounding == "rn":
        up = rest > Fraction(1, 2) or (rest == Fraction(1, 2) and whole % 2 == 1)
    elif rounding == "rna":
        up = rest >= Fraction(1, 2)
    else:
        up = rest > 0 and ((rounding == "rp" and value > 0) or (rounding == "rm" and value < 0))
    rounded = (whole + up) * unit
    limit = (2 - Fraction(1, 2 ** (form.precision - 1))) * Fraction(2) ** form.largest
    sign = 1.0 if value > 0 else -1.0
    if rounded > limit:
        towards_zero = rounding == "rz" or (rounding == "rm" and value > 0) or (rounding == "rp" and value < 0)
        return sign * (float(limit) if towards_zero else math.inf)
    return sign * float(rounded)


def edge_floats(count: int = 2000) -> Array:
    """float32 of every kind: special values, powers of two and their neighbours, subnormals, random bits."""
    random = np.random.default_rng(5)
    powers = np.ldexp(np.float32(1), np.arange(-149, 128)).astype(np.float32)
    near = [np.nextafter(powers, np.float32(limit)) for limit in (0, np.inf)]
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1.0, -1.0, 65504, 65519.99, 65520, 3.4e38], np.float32)
    bits = random.integers(0, 2**32, count, dtype=np.uint32).view(np.float32)
    values = np.concatenate([special, powers, -powers, *near, bits, random.standard_normal(count).astype(np.float32)])
    return values.astype(np.float32)


def same(a: ArrayLike, b: ArrayLike) -> bool:
    """Equal, with the same signs of zero; any NaN equals any other."""
    x, y = np.asarray(a), np.asarray(b)
    nan = np.isnan(x) & np.isnan(y)
    return bool(np.all(nan | ((x == y) & (np.signbit(x) == np.signbit(y)))))


def kernel_module(name: str, *defines: str) -> Module:
    """A kernel of this folder, compiled."""
    return Module(compile_ptx(KERNELS / f"{name}.cu", defines=defines, includes=INCLUDES))


def marked_line(name: str, marker: str) -> int:
    """The line of a kernel's source that ends with the marker."""
    lines = (KERNELS / f"{name}.cu").read_text(encoding="utf-8").splitlines()
    (number,) = (i + 1 for i, line in enumerate(lines) if line.endswith(marker))
    return number
