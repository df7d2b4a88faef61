"""State spaces of the PTX engine: loads and stores of every width, generic addresses, atomics, asynchronous copies."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.ptx import KernelError, LaunchError, Memory, Module, UnsupportedPtx
from tests.cuda.ptx.harness import assemble, compute
from tests.cuda.ptx.types import DTYPES, Array

POINTERS = ".param .u64 x, .param .u64 y"


def run(
    body: str,
    x: Array,
    y: int,
    dtype: str,
    threads: int = 32,
    seed: int | None = None,
    declarations: str = "",
    smem: int = 0,
) -> Array:
    """Runs a kernel of one block on an input and an output; %x, %y are their addresses and %t is the thread."""
    start = "\t.reg .b64 %x, %y, %a, %b, %c;\n\t.reg .b32 %t, %r<8>;\n\t.reg .b16 %h<4>;\n"
    start += "\t.reg .f32 %f<8>;\n\t.reg .pred %p;\n"
    start += "\tld.param.u64 %x, [x];\n\tld.param.u64 %y, [y];\n\tmov.u32 %t, %tid.x;\n"
    module = Module(assemble(start + body, POINTERS, declarations))
    memory = Memory()
    module.run("test", 1, threads, smem, [memory.upload("x", x), memory.output("y", y, dtype)], memory, seed)
    return memory.download("y")


@pytest.mark.parametrize("type_name", ["u8", "s8", "b8", "u16", "s16", "b16"])
def test_narrow_loads_extend_and_narrow_stores_cut(type_name: str) -> None:
    x = np.arange(-60, 68, dtype=np.int16)
    size = DTYPES[type_name].itemsize
    body = f"mad.wide.u32 %a, %t, {size}, %x;\nld.global.{type_name} %r0, [%a];\n"
    body += "mad.wide.u32 %b, %t, 4, %y;\nst.global.b32 [%b], %r0;"
    got = run(body, x, 32, "i4")
    assert np.array_equal(got, x.view(DTYPES[type_name])[:32].astype(np.int32))
    body = f"mad.wide.u32 %a, %t, 4, %x;\nld.global.b32 %r0, [%a];\nmad.wide.u32 %b, %t, {size}, %y;\n"
    body += f"st.global.{type_name} [%b], %r0;"
    got = run(body, np.arange(1000, 1032, dtype=np.int32), 32, DTYPES[type_name].name)
    assert np.array_equal(got, np.arange(1000, 1032).astype(DTYPES[type_name]))


@pytest.mark.parametrize("hint", ["", ".nc", ".cs", ".L2::128B", ".L1::no_allocate"])
def test_vectors(hint: str) -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 128, dtype=np.uint32)
    body = f"mad.wide.u32 %a, %t, 16, %x;\nld.global{hint}.v4.u32 {{%r0, %r1, %r2, %r3}}, [%a];\n"
    body += "mad.wide.u32 %b, %t, 16, %y;\nst.global.v4.u32 [%b], {%r3, %r2, %r1, %r0};"
    assert np.array_equal(run(body, x, 128, "u4").reshape(-1, 4), x.reshape(-1, 4)[:, ::-1])
    body = "mad.wide.u32 %a, %t, 4, %x;\nld.global.v2.u16 {%h0, _}, [%a];\nmad.wide.u32 %b, %t, 4, %y;\n"
    body += "st.global.v2.b16 [%b], {%h0, %h0};"
    got = run(body, x, 64, "u2")
    assert np.array_equal(got, np.repeat(x[:32].astype(np.uint16), 2))


def test_only_acting_lanes_touch_memory() -> None:
    body = "setp.lt.u32 %p, %t, 5;\nmad.wide.u32 %a, %t, 4, %x;\nmov.b32 %r0, 7;\n@%p ld.global.u32 %r0, [%a];\n"
    body += "mad.wide.u32 %b, %t, 4, %y;\n@%p st.global.u32 [%b], %r0;"
    got = run(body, np.arange(5, dtype=np.uint32), 5, "u4")
    assert got.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_fault_names_the_thread_among_those_that_act(seed: int | None) -> None:
    body = "and.b32 %r0, %t, 1;\nsetp.eq.u32 %p, %r0, 1;\nmad.wide.u32 %a, %t, 4, %x;\n{access}"
    x = np.zeros(53, np.uint32)
    for access in ("@%p ld.global.u32 %r1, [%a];", "@%p st.global.u32 [%a], %r0;", "@%p red.global.add.u32 [%a], 1;"):
        with pytest.raises(KernelError, match="0 bytes past the end of global 'x'") as caught:
            run(body.replace("{access}", access), x[:53], 1, "u4", 54, seed)
        assert caught.value.thread == (53, 0, 0)


SHARED = ".shared .align 16 .b8 first[64];\n.shared .align 16 .b8 second[128];"


def test_shared_and_generic_addresses_are_the_same_bytes() -> None:
    body = "mov.u32 %r0, second;\nmad.lo.u32 %r0, %t, 4, %r0;\nst.shared.u32 [%r0], %t;\nbar.sync 0;\n"
    body += "mov.u64 %a, second;\ncvta.shared.u64 %a, %a;\nmul.wide.u32 %b, %t, 4;\nsub.s64 %a, %a, %b;\n"
    body += "ld.u32 %r1, [%a+124];\nmad.wide.u32 %b, %t, 4, %y;\nst.u32 [%b], %r1;\n"
    body += "isspacep.shared %p, %a;\n@!%p trap;\nisspacep.global %p, %b;\n@!%p trap;"
    got = run(body, np.zeros(1), 32, "u4", declarations=SHARED)
    assert got.tolist() == list(range(31, -1, -1))


def test_one_generic_load_reaches_two_spaces() -> None:
    body = "mov.u64 %a, second;\nst.shared.u32 [second], 77;\nbar.sync 0;\ncvta.shared.u64 %a, %a;\n"
    body += "setp.lt.u32 %p, %t, 16;\nselp.b64 %a, %a, %x, %p;\nld.u32 %r1, [%a];\n"
    body += "mad.wide.u32 %b, %t, 4, %y;\nst.global.u32 [%b], %r1;"
    got = run(body, np.array([5], np.uint32), 32, "u4", declarations=SHARED)
    assert got.tolist() == [77] * 16 + [5] * 16


def test_each_block_begins_with_fresh_memory_and_registers() -> None:
    body = "\t.reg .b32 %b, %r<4>, %never;\n\t.reg .pred %p;\n\t.reg .b64 %y, %a;\n\tld.param.u64 %y, [y];\n"
    body += "\tmov.u32 %b, %ctaid.x;\n\tmad.wide.u32 %a, %b, 4, %y;\n\tst.global.u32 [%a], %never;\n"
    body += "\tmov.u32 %never, 5;\n\tsetp.eq.u32 %p, %b, 0;\n\t@%p st.shared.u32 [first], 1;\n{more}"
    for seed in (None, 0, 3):
        memory = Memory()
        y = memory.output("y", 2, np.uint32)
        Module(assemble(body.replace("{more}", ""), ".param .u64 y", SHARED)).run("test", 2, 1, 0, [y], memory, seed)
        # A register that was never written has all bits set.
        assert memory.download("y").tolist() == [0xFFFFFFFF] * 2
        module = Module(assemble(body.replace("{more}", "\tld.shared.u32 %r0, [first];\n"), ".param .u64 y", SHARED))
        with pytest.raises(KernelError, match="uninitialised read") as caught:
            module.run("test", 2, 1, 0, [y], memory, seed)
        assert caught.value.block == (1, 0, 0)


def test_mixing_address_kinds_is_out_of_bounds() -> None:
    # A shared address is no generic one, and a generic one cut to 32 bits no shared one.
    with pytest.raises(KernelError, match="is in no state space"):
        run("mov.u64 %a, second;\nld.u32 %r0, [%a];", np.zeros(1), 1, "u4", declarations=SHARED)
    body = "mov.u64 %a, second;\ncvta.shared.u64 %a, %a;\ncvt.u32.u64 %r0, %a;\nst.shared.u32 [%r0], 1;"
    with pytest.raises(KernelError, match="out of bounds"):
        run(body, np.zeros(1), 1, "u4", declarations=SHARED)


def test_local_memory_is_each_threads_own() -> None:
    for seed in (None, 1):
        body = ".local .align 8 .b8 depot[16];\nmov.u64 %a, depot;\nst.local.u32 [%a+4], %t;\nbar.sync 0;\n"
        body += "cvta.local.u64 %a, %a;\nld.u32 %r0, [%a+4];\nmad.wide.u32 %b, %t, 4, %y;\nst.global.u32 [%b], %r0;"
        assert run(body, np.zeros(1), 70, "u4", 70, seed).tolist() == list(range(70))
        with pytest.raises(KernelError, match="uninitialised read: load of 4 bytes at byte 0 of local 'depot'"):
            run(body.replace("ld.u32 %r0, [%a+4]", "ld.u32 %r0, [%a]"), np.zeros(1), 70, "u4", 70, seed)
        with pytest.raises(
            KernelError,
            match=r"out of bounds: .* of 4 bytes at 0 bytes past the end of local 'depot'",
        ):
            run(body.replace("ld.u32 %r0, [%a+4]", "ld.u32 %r0, [%a+16]"), np.zeros(1), 70, "u4", 70, seed)


def test_module_variables() -> None:
    declarations = ".const .align 4 .u32 table[4] = {10, 0x14, 30};\n.global .align 4 .b8 counter[8] = {1};\n"
    body = "and.b32 %r0, %t, 3;\nmov.u64 %a, table;\nmad.wide.u32 %a, %r0, 4, %a;\nld.const.u32 %r1, [%a];\n"
    body += "ld.const.u32 %r2, [table+4];\natom.global.add.u32 %r3, [counter], 1;\nadd.s32 %r1, %r1, %r2;\n"
    body += "mad.wide.u32 %b, %t, 4, %y;\nst.global.u32 [%b], %r1;"
    assert run(body, np.zeros(1), 32, "u4", declarations=declarations).tolist() == [30, 40, 50, 20] * 8
    module = Module(assemble("\t.reg .b32 %r;\n" + "atom.global.add.u32 %r, [counter], 2;", declarations=declarations))
    memory = Memory()
    for _ in range(2):
        module.run("test", 2, 3, 0, [], memory)
    (region,) = (region for region in memory.regions if region.name == "counter")
    assert memory.data[region.start : region.start + 4].view(np.uint32)[0] == 1 + 2 * 2 * 3 * 2


@pytest.mark.parametrize(
    ("operation", "type_name", "expected"),
    [
        ("add", "u32", 10 + sum(range(32))),
        ("add", "u64", 10 + sum(range(32))),
        ("min", "u32", 0),
        ("min", "s32", 0),
        ("max", "s32", 31),
        ("and", "b32", 0),
        ("or", "b32", 31),
        ("xor", "b32", 10),
        ("exch", "b32", 31),
        ("inc", "u32", None),
        ("dec", "u32", None),
    ],
)
def test_atomics(operation: str, type_name: str, expected: int | None) -> None:
    wide = type_name.endswith("64")
    value = "%a" if wide else "%t"
    body = f"cvt.u64.u32 %a, %t;\natom.global.{operation}.{type_name} {'%c' if wide else '%r1'}, [%x], {value};\n"
    result = "b64 [%y], %c" if wide else "b32 [%y], %r0"
    body += f"bar.sync 0;\nld.global.{'b64 %c' if wide else 'b32 %r0'}, [%x];\nst.global.{result};"
    x = np.array([10], np.uint64 if wide else np.uint32)
    got = int(run(body, x, 1, x.dtype.name)[0])
    value_now = 10
    for lane in range(32):
        if operation == "inc":
            value_now = 0 if value_now >= lane else value_now + 1
        elif operation == "dec":
            value_now = lane if value_now == 0 or value_now > lane else value_now - 1
    assert got == (value_now if expected is None else expected)


def test_atomics_return_what_was_there() -> None:
    body = "atom.shared.add.u32 %r1, [second], 1;\n" * 0
    body += (
        "setp.eq.u32 %p, %t, 0;\n@%p st.shared.u32 [second], 0;\nbar.sync 0;\natom.shared.add.u32 %r1, [second], 3;\n"
    )
    body += "mad.wide.u32 %b, %t, 4, %y;\nst.global.u32 [%b], %r1;"
    assert sorted(run(body, np.zeros(1), 64, "u4", 64, 3, SHARED).tolist()) == [3 * i for i in range(64)]
    body = "atom.global.cas.b32 %r1, [%x], 5, %t;\nmad.wide.u32 %b, %t, 4, %y;\nst.global.u32 [%b], %r1;"
    assert run(body, np.array([5], np.uint32), 32, "u4").tolist() == [5] + [0] * 31
    body = "red.global.add.f32 [%x], 0f3F000000;\nbar.sync 0;\nld.global.f32 %f0, [%x];\nst.global.f32 [%y], %f0;"
    assert run(body, np.array([1], np.float32), 1, "f4").tolist() == [17.0]


@pytest.mark.parametrize("seed", [None, 0, 5])
@pytest.mark.parametrize("valid", [0, 1, 5, 15, 16])
def test_asynchronous_copies_fill_with_zeros(valid: int, seed: int | None) -> None:
    x = np.arange(1, 513, dtype=np.uint8)
    declarations = ".extern .shared .align 1024 .b8 dynamic[];"
    body = f"mov.u32 %r0, dynamic;\nmad.lo.u32 %r0, %t, 16, %r0;\nmad.wide.u32 %a, %t, 16, %x;\nmov.b32 %r1, {valid};\n"
    body += "cp.async.cg.shared.global.L2::128B [%r0], [%a], 16, %r1;\ncp.async.wait_all;\n"
    body += "ld.shared.v4.u32 {%r2, %r3, %r4, %r5}, [%r0];\nmad.wide.u32 %b, %t, 16, %y;\n"
    body += "st.global.v4.u32 [%b], {%r2, %r3, %r4, %r5};"
    got = run(body, x, 512, "u1", 32, seed, declarations, 512).reshape(32, 16)
    expected = x.reshape(32, 16).copy()
    expected[:, valid:] = 0
    assert np.array_equal(got, expected)


def test_only_the_bytes_copied_need_exist() -> None:
    declarations = ".extern .shared .align 1024 .b8 dynamic[];"
    body = "mov.u32 %r0, dynamic;\nmov.b32 %r1, 4;\ncp.async.cg.shared.global [%r0], [%x], 16, {size};\n"
    body += "cp.async.wait_all;\nld.shared.u32 %r2, [%r0];\nst.global.u32 [%y], %r2;"
    x = np.array([9], np.uint32)
    assert run(body.replace("{size}", "%r1"), x, 1, "u4", 1, None, declarations, 16).tolist() == [9]
    for size in ("16", "8"):
        with pytest.raises(KernelError, match="out of bounds"):
            run(body.replace("{size}", size), x, 1, "u4", 1, None, declarations, 16)
    with pytest.raises(KernelError, match=r"cp\.async: source size 17 of a copy of 16 bytes"):
        run(body.replace("{size}", "17"), x, 1, "u4", 1, None, declarations, 16)
    small = body.replace("cg", "ca").replace("16, {size}", "4")
    assert run(small, x, 1, "u4", 1, None, declarations, 16).tolist() == [9]


def test_groups_land_in_order_of_each_thread() -> None:
    # Three groups, of which lanes below 8 commit one copy more; wait_group 1 leaves each lane's own last one in flight.
    declarations = ".extern .shared .align 1024 .b8 dynamic[];"
    body = "mov.u32 %r0, dynamic;\nmad.lo.u32 %r0, %t, 64, %r0;\nmov.u64 %a, %x;\nsetp.lt.u32 %p, %t, 8;\n"
    body += "cp.async.ca.shared.global [%r0], [%a], 4;\ncp.async.commit_group;\n"
    body += "cp.async.ca.shared.global [%r0+16], [%a], 4;\ncp.async.commit_group;\n"
    body += "@%p cp.async.ca.shared.global [%r0+32], [%a], 4;\n@%p cp.async.commit_group;\ncp.async.wait_group 1;\n"
    body += "ld.shared.u32 %r1, [%r0];\n@%p ld.shared.u32 %r1, [%r0+16];\n{more}"
    body += "mad.wide.u32 %b, %t, 4, %y;\nst.global.u32 [%b], %r1;"
    x = np.array([3], np.uint32)
    assert (run(body.replace("{more}", ""), x, 32, "u4", 32, None, declarations, 2048) == 3).all()
    for more, lane in (("ld.shared.u32 %r1, [%r0+16];\n", 8), ("@%p ld.shared.u32 %r1, [%r0+32];\n", 0)):
        with pytest.raises(KernelError, match="copy in flight") as caught:
            run(body.replace("{more}", more), x, 32, "u4", 32, None, declarations, 2048)
        assert caught.value.thread == (lane, 0, 0)


def test_dynamic_shared_memory_has_the_size_of_the_launch() -> None:
    declarations = ".extern .shared .align 16 .b8 dynamic[];"
    body = "mov.u32 %r0, %dynamic_smem_size;\nadd.u32 %r0, %r0, -4;\nmov.u32 %r1, dynamic;\nadd.u32 %r1, %r1, %r0;\n"
    body += "st.shared.u32 [%r1{more}], %r0;\nld.shared.u32 %r2, [%r1];\nst.global.u32 [%y], %r2;"
    assert run(body.replace("{more}", ""), np.zeros(1), 1, "u4", 1, None, declarations, 400).tolist() == [396]
    with pytest.raises(KernelError, match="0 bytes past the end of shared 'dynamic shared memory' \\(400 bytes\\)"):
        run(body.replace("{more}", "+4"), np.zeros(1), 1, "u4", 1, None, declarations, 400)


def test_memory_of_the_host() -> None:
    memory = Memory()
    a = memory.upload("a", np.arange(6, dtype=np.int16).reshape(2, 3))
    empty = memory.output("empty", 0, np.float32)
    big = memory.output("big", (1000, 1000), np.uint16)
    assert len({a, empty, big}) == 3
    assert all(address % 256 == 0 for address in (a, empty, big))
    assert memory.download("a").tolist() == [[0, 1, 2], [3, 4, 5]]
    assert memory.download("big").shape == (1000, 1000)
    assert memory.unwritten("big").all()
    assert not memory.unwritten("a").any()
    with pytest.raises(LaunchError, match="a buffer named 'a' already"):
        memory.upload("a", np.zeros(1))
    with pytest.raises(LaunchError, match="no buffer named 'b'"):
        memory.download("b")


@pytest.mark.parametrize(
    "body",
    [
        "ld.global.v8.u32 {%r0, %r1}, [%x];",
        "ld.global.v2.u32 {%r0, %r1, %r2}, [%x];",
        "ld.tex.u32 %r0, [%x];",
        "st.const.u32 [%x], %r0;",
        "ld.mmio.relaxed.sys.global.u32 %r0, [%x];",
        "cp.async.bulk.shared.global [%r0], [%x], 16;",
        "cp.async.cg.shared.global [%r0], [%x], 8;",
        "cp.async.cg.shared.global [%r0], [%x], 16, 16, %p;",
        "atom.global.add.noftz.f16x2 %r0, [%x], %r0;",
        "atom.global.max.f32 %f0, [%x], %f0;",
        "ld.global.b128 %r0, [%x];",
        "ld.global.u32 %r0, %x;",
        "mbarrier.init.shared.b64 [%r0], 1;",
    ],
)
def test_unknown_forms(body: str) -> None:
    with pytest.raises(UnsupportedPtx) as caught:
        run(body, np.zeros(1), 1, "u4")
    assert body.rstrip(";") in str(caught.value)


def test_int32_values_survive_compute_in_random_order() -> None:
    a = np.arange(300, dtype=np.int32)
    assert np.array_equal(compute("add.s32 %out, %a, 1;", np.int32, 4, a=a), a + 1)
