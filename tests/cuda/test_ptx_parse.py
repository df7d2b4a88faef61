"""Reading PTX: pieces, scopes, operands, declarations, the line table, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.ptx import LaunchError, Memory, Module, ParseError, UnsupportedPtx
from tests.cuda.ptx.harness import assemble, compute, kernel_module, marked_line
from tests.cuda.ptx.operands import Scope, parse_integer, parse_operand
from tests.cuda.ptx.parse import parse, parse_variable
from tests.cuda.ptx.scan import split_operands, without_comments
from tests.cuda.ptx.syntax import Address, Immediate, Location, Pair, Register, Sink, Special, Symbol, Vector


@pytest.fixture
def scope() -> Scope:
    found = Scope()
    found.declare_registers("b32", "%r<10>, low")
    found.declare_registers("pred", "%p<2>")
    found.variables["array"] = "array"
    return found


def test_operands(scope: Scope) -> None:
    r1 = Register("%r1", "b32")
    cases = {
        "%r1": r1,
        "-12": Immediate(-12),
        "0x1F": Immediate(31),
        "0X1fU": Immediate(31),
        "0b101": Immediate(5),
        "017": Immediate(15),
        "0f3F800000": Immediate(0x3F800000, 4),
        "0d3FF0000000000000": Immediate(0x3FF0000000000000, 8),
        "1.0": Immediate(0x3FF0000000000000, 8),
        "WARP_SZ": Immediate(32),
        "%tid.x": Special("tid.x"),
        "_": Sink(),
        "[%r1+8]": Address(r1, 8),
        "[%r1+-8]": Address(r1, -8),
        "[ array + 4 ]": Address(Symbol("array"), 4),
        "array": Symbol("array"),
        "array+16": Symbol("array", 16),
        "{%r1, _}": Vector((r1, Sink())),
        "%r1|%p1": Pair(r1, Register("%p1", "pred")),
        "$L__BB0_1": Symbol("$L__BB0_1"),
    }
    for text, expected in cases.items():
        assert parse_operand(text, scope) == expected, text


@pytest.mark.parametrize("text", ["%r1*2", "[%r1+%r2]", "!%r99", "1e5", "a b", "[0f00000000]", "array+x"])
def test_unreadable_operands(text: str, scope: Scope) -> None:
    with pytest.raises(ParseError):
        parse_operand(text, scope)


def test_a_register_out_of_range_is_none(scope: Scope) -> None:
    assert parse_operand("%r10", scope) == Special("r10")
    with pytest.raises(UnsupportedPtx, match="%nosuch3: no such register"):
        compute("mov.b32 %out, %nosuch3;", np.uint32, a=np.zeros(1, np.uint32))


def test_integers_that_are_none() -> None:
    assert [parse_integer(text) for text in ("0x", "1.5", "abc", "0f3F800000", "")] == [None] * 5


def test_splitting() -> None:
    assert split_operands("{a, b}, [c+4], (d, e), f") == ["{a, b}", "[c+4]", "(d, e)", "f"]
    assert split_operands("") == []
    assert without_comments('a // b\nc /* d\ne */ f "x//y"') == 'a \nc \n f "x//y"'


def test_registers_of_inner_scopes_are_others() -> None:
    body = "mov.u32 %t0, 1;\n{ .reg .b32 %t0; mov.u32 %t0, 5; { .reg .b16 %t0; mov.u16 %t0, 9; }\n"
    body += "add.u32 %out, %t0, %a; }\nadd.u32 %out, %out, %t0;"
    assert compute(body, np.uint32, a=np.array([10], np.uint32)).tolist() == [16]


def test_loose_formatting() -> None:
    body = "{.reg.b32 x;mov.b32 x,%a ;\n\tadd.u32\t%out , x,x;}/* over\nlines */ add.u32 %out,\n%out,\n1;"
    assert compute(body, np.uint32, a=np.array([10], np.uint32)).tolist() == [21]


def test_declarations() -> None:
    table = parse_variable(".const .align 4 .u16 table[4] = {1, 0x2, -1}")
    assert (table.size, table.align, table.initial) == (8, 4, b"\1\0\2\0\xff\xff\0\0")
    grid = parse_variable(".shared .align 16 .b8 grid[3][4]")
    assert (grid.size, grid.initial, grid.is_array) == (12, None, True)
    dynamic = parse_variable(".extern .shared .align 1024 .b8 bytes[]")
    assert (dynamic.size, dynamic.align) == (0, 1024)
    assert parse_variable(".global .f32 one = 0f3F800000").initial == b"\0\0\x80\x3f"
    pointer = parse_variable(".param .u64 .ptr .global .align 16 input")
    assert (pointer.name, pointer.size) == ("input", 8)
    for text in (".texture .b8 x", ".global .f99 x", ".global .u64 x[1] = {other}"):
        with pytest.raises(ParseError):
            parse_variable(text)


def test_functions_and_directives() -> None:
    program = parse(
        ".version 9.0\n.target sm_90a, debug\n.address_size 64\n.extern .func gone\n(.param .b32 a)\n;\n"
        ".visible .entry big(.param .u32 n)\n.maxntid 64, 2\n.minnctapersm 2\n{ ret; }\n"
        '.file 1 "/a//b.cu"\n.section .debug_str\n{ .b8 1,2\n}\n'
    )
    assert program.target == "sm_90a"
    assert program.externals == {"gone"}
    assert program.functions["big"].max_threads == (64, 2, 1)
    assert program.files == {1: "/a//b.cu"}
    assert program.where(Location(1, 7)) == "/a//b.cu:7"
    assert program.where(Location(1, 7, (1, 9))) == "/a//b.cu:7 (inlined at /a//b.cu:9)"
    assert program.where(None) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (".address_size 32\n", "only 64-bit"),
        (".visible .entry f()\n.cluster_dims 2\n{ ret; }", "unknown directive .cluster_dims"),
        (".visible .entry f() { .strange x; ret; }", "PTX line 1: unknown directive .strange"),
        (".visible .entry f() {\nadd.u32 %r1, 1*2;\nret; }", "PTX line 2: cannot read the operand"),
        (".visible .entry f() {\n@%p1 ret; }", "PTX line 2: %p1: no such predicate"),
        (".visible .entry f() {\na:\nret;\n{ a: ret; } }", "PTX line 4: label a in two scopes"),
        (".visible .entry f() { ret", "brace is never closed"),
        (".visible .entry f() { ret }", "no semicolon"),
        ("nonsense;", "cannot read 'nonsense'"),
    ],
)
def test_refused_texts(text: str, message: str) -> None:
    with pytest.raises(ParseError, match=message):
        parse(text).function("f")


def test_jumps_need_a_place() -> None:
    with pytest.raises(UnsupportedPtx, match="no label nowhere"):
        Module(assemble("\tbra nowhere;")).run("test", 1, 1, 0, [], Memory())
    endless = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry f() { .reg .b32 %r; mov.b32 %r, 1; }"
    with pytest.raises(LaunchError, match="has no ret at its end"):
        Module(endless).run("f", 1, 1, 0, [], Memory())


def test_an_unknown_instruction_is_an_error_even_where_no_thread_comes() -> None:
    body = "\t.reg .pred %p;\n\tsetp.ne.u32 %p, 1, 1;\n\t@!%p bra over;\n\twgmma.fence.sync.aligned;\nover:"
    with pytest.raises(UnsupportedPtx, match=r"PTX line \d+: wgmma.fence.sync.aligned: unknown instruction"):
        Module(assemble(body)).run("test", 1, 1, 0, [], Memory())


def test_kernels_by_name() -> None:
    module = kernel_module("rules")
    assert module.kernel("missing_barrier<true>").demangled == "void missing_barrier<true>(float const*, float*)"
    mangled = module.kernel("missing_barrier<true>").name
    assert module.kernel(mangled).name == mangled
    with pytest.raises(LaunchError, match="2 kernels named 'missing_barrier'"):
        module.kernel("missing_barrier")
    with pytest.raises(LaunchError, match="no kernel named 'barrier'"):
        module.kernel("barrier")


def test_lines_of_the_source_are_found() -> None:
    module = kernel_module("rules")
    function = module.program.function(module.kernel("unmasked_tail<true>").name)
    lines = {
        i.location.line for i in function.instructions if i.location and i.opcode in ("ld", "st") and "global" in i.text
    }
    assert lines == {marked_line("rules", "BUG unmasked_tail")}


def test_places_that_no_thread_reaches_are_listed() -> None:
    module = kernel_module("rules")
    memory = Memory()
    pointers = [memory.upload("x", np.zeros(64, np.float32)), memory.output("y", 64, np.float32)]
    run = module.run("unmasked_tail<false>", 1, 64, 0, [*pointers, 0], memory)
    assert any(place.endswith(f"rules.cu:{marked_line('rules', 'BUG unmasked_tail')}") for place in run.unexecuted)
    run = module.run("unmasked_tail<false>", 1, 64, 0, [*pointers, 40], memory)
    assert run.unexecuted == []
    assert 5 < run.instructions < 100


LAUNCHES = [
    ({"block": 1025}, "block"),
    ({"block": (32, 33)}, "1056 threads; at most 1024"),
    ({"block": (1, 1, 65)}, "block"),
    ({"grid": 0}, "grid"),
    ({"grid": (1, 65536)}, "grid"),
    ({"smem_bytes": 163 * 1024 + 1}, "bytes of shared memory; sm_80 allows 166912"),
    ({"smem_bytes": -1}, "shared memory"),
    ({"parameters": [1]}, "1 parameters given, the kernel has 3"),
    ({"parameters": [1, 2, 3.5]}, "given 3.5"),
    ({"parameters": [1, 2**64, 3]}, "does not fit"),
    ({"parameters": [1, 2, b"123"]}, "3 bytes given, it has 4"),
]


@pytest.mark.parametrize(("changes", "message"), LAUNCHES)
def test_wrong_launches(changes: dict[str, object], message: str) -> None:
    module = kernel_module("rules")
    arguments = {"grid": 1, "block": 32, "smem_bytes": 0, "parameters": [1, 2, 3], "memory": Memory()} | changes
    with pytest.raises(LaunchError, match=message):
        module.run("unmasked_tail<true>", **arguments)  # type: ignore[arg-type]


def test_launch_bounds_and_structs() -> None:
    text = assemble("\tret;", ".param .align 8 .b8 p[24]").replace(")\n{", ")\n.maxntid 64\n{")
    module = Module(text)
    with pytest.raises(LaunchError, match=r"launch bounds allow \(64, 1, 1\)"):
        module.run("test", 1, 65, 0, [bytes(24)], Memory())
    with pytest.raises(LaunchError, match="p is a struct of 24 bytes; give it as bytes"):
        module.run("test", 1, 64, 0, [5], Memory())
    module.run("test", 1, 64, 0, [bytes(24)], Memory())
    with pytest.raises(LaunchError, match="shared memory is not known"):
        Module(text.replace("sm_80", "sm_35")).run("test", 1, 64, 0, [bytes(24)], Memory())


def test_every_thread_knows_where_it_is() -> None:
    names = [f"{base}.{axis}" for base in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
    names += ["laneid", "lanemask_lt", "lanemask_le", "lanemask_gt", "lanemask_ge", "lanemask_eq"]
    body = "\t.reg .b64 %y, %a;\n\t.reg .b32 %i, %b, %r;\n\tld.param.u64 %y, [y];\n"
    body += "\tmov.u32 %i, %tid.z;\n\tmad.lo.u32 %i, %i, 2, 0;\n\tmov.u32 %b, %tid.y;\n\tadd.u32 %i, %i, %b;\n"
    body += "\tmov.u32 %b, %tid.x;\n\tmad.lo.u32 %i, %i, 20, %b;\n\tmov.u32 %b, %ctaid.y;\n\tmad.lo.u32 %b, %b, 3, 0;\n"
    body += "\tmov.u32 %r, %ctaid.x;\n\tadd.u32 %b, %b, %r;\n\tmad.lo.u32 %i, %b, 120, %i;\n"
    body += f"\tmad.wide.u32 %a, %i, {4 * len(names)}, %y;\n"
    body += "".join(f"\tmov.u32 %r, %{name};\n\tst.global.u32 [%a+{4 * i}], %r;\n" for i, name in enumerate(names))
    module = Module(assemble(body, ".param .u64 y"))
    for seed in (None, 1):
        memory = Memory()
        y = memory.output("y", (2, 3, 3, 2, 20, len(names)), np.uint32)
        module.run("test", (3, 2), (20, 2, 3), 0, [y], memory, seed)
        got = memory.download("y")
        for (by, bx, z, t_y, x), row in zip(np.ndindex(2, 3, 3, 2, 20), got.reshape(-1, len(names)), strict=True):
            lane = ((z * 2 + t_y) * 20 + x) % 32
            below = (1 << lane) - 1
            masks = [below, below << 1 | 1, ~(below << 1 | 1), ~below, 1 << lane]
            expected = [x, t_y, z, 20, 2, 3, bx, by, 0, 3, 2, 1, lane, *masks]
            assert row.tolist() == [value & 0xFFFFFFFF for value in expected]
