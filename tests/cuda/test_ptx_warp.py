"""Warp operations, barriers, divergence and calls of the PTX engine."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda.ptx import KernelError, Memory, Module, UnsupportedPtx
from tests.cuda.ptx.harness import assemble
from tests.cuda.ptx.types import Array

ORDERS = (None, 0, 1, 2)
LANES = np.arange(32)


def run(body: str, x: Array, threads: int | None = None, seed: int | None = None, declarations: str = "") -> Array:
    """Each thread loads its element of x into %v and stores %out."""
    count = len(x) if threads is None else threads
    start = "\t.reg .b64 %a, %x, %y;\n\t.reg .b32 %t, %v, %out, %r<8>;\n\t.reg .pred %p, %q;\n"
    start += "\tmov.u32 %t, %tid.x;\n\tld.param.u64 %x, [x];\n\tld.param.u64 %y, [y];\n"
    start += "\tmad.wide.u32 %a, %t, 4, %x;\n\tld.global.u32 %v, [%a];\n"
    end = "\n\tmad.wide.u32 %a, %t, 4, %y;\n\tst.global.u32 [%a], %out;"
    module = Module(assemble(start + body + end, ".param .u64 x, .param .u64 y", declarations))
    memory = Memory()
    pointers = [memory.upload("x", x), memory.output("y", count, np.uint32)]
    module.run("test", 1, count, 0, pointers, memory, seed)
    return memory.download("y")


def shuffled(mode: str, b: int, width: int, x: Array) -> tuple[Array, Array]:
    """(values, whether the source was inside the segment) by CUDA's words: segments of `width` lanes."""
    lane = LANES % width
    first = LANES - lane
    if mode == "idx":
        source, inside = first + b % width, np.ones(32, bool)
    elif mode == "up":
        source, inside = LANES - b, lane - b >= 0
    elif mode == "down":
        source, inside = LANES + b, lane + b < width
    else:
        # A butterfly may reach into lower segments, not into higher ones.
        source = LANES ^ b
        inside = source < first + width
    return x[np.where(inside, source, LANES)], inside


@pytest.mark.parametrize("width", [32, 16, 8, 4, 2])
@pytest.mark.parametrize("mode", ["idx", "up", "down", "bfly"])
def test_shuffles(mode: str, width: int) -> None:
    x = np.random.default_rng(0).integers(0, 2**32, 64, dtype=np.uint32)
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    for b in (0, 1, 3, 7, 16, 31):
        if mode == "idx" and b >= width:
            continue
        body = f"shfl.sync.{mode}.b32 %out|%p, %v, {b}, {clamp}, 0xFFFFFFFF;"
        expected = np.concatenate([shuffled(mode, b, width, part)[0] for part in (x[:32], x[32:])])
        assert np.array_equal(run(body, x), expected), b
        inside = np.concatenate([shuffled(mode, b, width, part)[1] for part in (x[:32], x[32:])])
        assert np.array_equal(run(body + "\nselp.u32 %out, 1, 0, %p;", x), inside), b


def test_votes_and_reductions() -> None:
    x = np.concatenate([np.arange(32), np.full(32, 5), np.arange(100, 132)]).astype(np.uint32)
    warps = x.reshape(3, 32)
    votes = "setp.gt.u32 %p, %v, 20;\n"
    yes = warps > 20
    bits = (yes << LANES).sum(1)
    assert np.array_equal(run(votes + "vote.sync.ballot.b32 %out, %p, -1;", x), np.repeat(bits, 32))
    assert np.array_equal(run(votes + "vote.sync.ballot.b32 %out, !%p, -1;", x), np.repeat(~bits & 0xFFFFFFFF, 32))
    for mode, expected in (("any", yes.any(1)), ("all", yes.all(1)), ("uni", yes.all(1) | ~yes.any(1))):
        body = votes + f"vote.sync.{mode}.pred %q, %p, -1;\nselp.u32 %out, 1, 0, %q;"
        assert np.array_equal(run(body, x), np.repeat(expected, 32)), mode
    signed = warps.view(np.int32) - 110
    functions = {"add": signed.sum(1), "min": signed.min(1), "max": signed.max(1)}
    for mode, expected in functions.items():
        body = f"sub.s32 %v, %v, 110;\nredux.sync.{mode}.s32 %out, %v, -1;"
        assert np.array_equal(run(body, x).view(np.int32), np.repeat(expected, 32)), mode
    for mode, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        assert np.array_equal(run(f"redux.sync.{mode}.b32 %out, %v, -1;", x), np.repeat(function.reduce(warps, 1), 32))


def test_groups_of_a_warp_vote_apart() -> None:
    x = np.arange(32, dtype=np.uint32)
    body = "setp.lt.u32 %p, %t, 10;\nselp.b32 %r0, 0x3FF, 0xFFFFFC00, %p;\nredux.sync.add.u32 %out, %v, %r0;"
    assert run(body, x).tolist() == [45] * 10 + [sum(range(10, 32))] * 22
    body = "setp.lt.u32 %p, %t, 10;\nmov.b32 %out, 0;\n@%p activemask.b32 %out;\n"
    body += "@!%p vote.sync.ballot.b32 %out, %p, 0xFFFFFC00;"
    assert run(body, x).tolist() == [0x3FF] * 10 + [0] * 22


def test_matches() -> None:
    x = (np.arange(64) % 3 + np.arange(64) // 32 * 10).astype(np.uint32)
    same = (x[:32, None] == x[None, :32]).astype(np.int64) @ (1 << LANES)
    assert np.array_equal(run("match.any.sync.b32 %out, %v, -1;", x)[:32], same)
    body = "match.all.sync.b32 %out|%p, %r1, -1;\nselp.u32 %r0, 1, 0, %p;\nadd.u32 %out, %out, %r0;"
    assert (run("mov.b32 %r1, 4;\n" + body, x) == 0).all()
    assert (run("mov.b32 %r1, %v;\n" + body, x) == 0).all()


@pytest.mark.parametrize("seed", ORDERS)
def test_barriers_with_votes(seed: int | None) -> None:
    x = np.arange(96, dtype=np.uint32)
    body = "setp.lt.u32 %p, %v, 40;\nbar.red.popc.u32 %r0, 0, %p;\n"
    body += "bar.red.and.pred %q, 0, !%p;\nselp.u32 %r1, 100, 0, %q;\n"
    body += "bar.red.or.pred %q, 0, %p;\nselp.u32 %r2, 1000, 0, %q;\nadd.u32 %out, %r0, %r1;\nadd.u32 %out, %out, %r2;"
    assert (run(body, x, seed=seed) == 40 + 1000).all()


@pytest.mark.parametrize("seed", ORDERS)
def test_named_barriers_of_part_of_the_block(seed: int | None) -> None:
    declarations = ".shared .align 4 .b8 cells[512];"
    body = "mov.u32 %r0, cells;\nmad.lo.u32 %r0, %t, 4, %r0;\nsetp.ge.u32 %p, %t, 64;\n@%p bra upper;\n"
    body += "st.shared.u32 [%r0], %v;\nbar.sync 1, 64;\nxor.b32 %r1, %t, 32;\nbra.uni both;\n"
    body += "upper:\nst.shared.u32 [%r0], %v;\nbar.sync 2, 64;\nxor.b32 %r1, %t, 32;\nboth:\n"
    body += "mov.u32 %r0, cells;\nmad.lo.u32 %r0, %r1, 4, %r0;\nld.shared.u32 %out, [%r0];"
    x = np.arange(500, 628, dtype=np.uint32)
    assert np.array_equal(run(body, x, seed=seed, declarations=declarations), 500 + (np.arange(128) ^ 32))


@pytest.mark.parametrize("seed", ORDERS)
def test_divergence_and_loops(seed: int | None) -> None:
    x = np.random.default_rng(1).integers(1, 200, 100, dtype=np.uint32)
    body = (
        "mov.u32 %out, 0;\nloop:\nadd.u32 %out, %out, 1;\nsetp.eq.u32 %p, %v, 1;\n@%p bra done;\nand.b32 %r0, %v, 1;\n"
    )
    body += "setp.eq.u32 %q, %r0, 0;\n@%q bra even;\nmad.lo.u32 %v, %v, 3, 1;\nbra loop;\neven:\nshr.u32 %v, %v, 1;\n"
    body += "bra loop;\ndone:\nbar.warp.sync -1;"

    def steps(n: int) -> int:
        return 1 if n == 1 else 1 + steps(3 * n + 1 if n % 2 else n // 2)

    assert run(body, x, seed=seed).tolist() == [steps(int(n)) for n in x]


@pytest.mark.parametrize("seed", ORDERS)
def test_indexed_branches(seed: int | None) -> None:
    body = "and.b32 %r0, %v, 3;\ntargets: .branchtargets a, b, c, a;\nbrx.idx %r0, targets;\n"
    body += "a:\nmov.u32 %out, 10;\nbra end;\nb:\nmov.u32 %out, 20;\nbra end;\nc:\nmov.u32 %out, 30;\nend:"
    x = np.arange(64, dtype=np.uint32)
    assert np.array_equal(run(body, x, seed=seed), np.array([10, 20, 30, 10])[x % 4])
    with pytest.raises(KernelError, match="index 7 of 4 branch targets"):
        run(body.replace("%v, 3", "%v, 7"), x, seed=seed)


FUNCTIONS = """
.func (.param .b32 result) twice(.param .b32 value)
{
	.reg .b32 %r<3>;
	.reg .pred %p;
	ld.param.u32 %r0, [value];
	setp.gt.u32 %p, %r0, 10;
	@%p bra large;
	add.u32 %r1, %r0, %r0;
	st.param.u32 [result], %r1;
	ret;
large:
	{
	.param .b32 inner;
	.param .b32 got;
	sub.u32 %r1, %r0, 10;
	st.param.b32 [inner], %r1;
	call.uni (got), half, (inner);
	ld.param.u32 %r2, [got];
	st.param.u32 [result], %r2;
	}
	ret;
}
.func (.param .b32 result) half(.param .b32 value)
{
	.reg .b32 %r<2>;
	ld.param.u32 %r0, [value];
	shr.u32 %r1, %r0, 1;
	st.param.u32 [result], %r1;
	ret;
}
"""
CALL = "{\n.param .b32 p0;\n.param .b32 r0;\nst.param.b32 [p0], %v;\n"
CALL += "call (r0), twice, (p0);\nld.param.b32 %out, [r0];\n}\n"


@pytest.mark.parametrize("seed", ORDERS)
def test_calls_from_diverged_threads(seed: int | None) -> None:
    x = np.arange(64, dtype=np.uint32)
    expected = np.where(x > 10, (x - 10) // 2, 2 * x)
    assert np.array_equal(run(CALL, x, seed=seed, declarations=FUNCTIONS), expected)
    body = "mov.u32 %out, 7;\nsetp.lt.u32 %p, %v, 30;\n@!%p bra end;\n" + CALL + "end:\nbar.warp.sync -1;"
    assert np.array_equal(run(body, x, seed=seed, declarations=FUNCTIONS), np.where(x < 30, expected, 7))


def test_recursion_and_unknown_functions_are_errors() -> None:
    x = np.zeros(32, np.uint32)
    recursive = FUNCTIONS.replace("call.uni (got), half", "call.uni (got), twice")
    with pytest.raises(UnsupportedPtx, match="twice calls itself"):
        run(CALL, x, declarations=recursive)
    with pytest.raises(UnsupportedPtx, match="twice is not defined in this module"):
        run(CALL, x)


@pytest.mark.parametrize("threads", [1, 31, 33, 100])
def test_blocks_of_any_size(threads: int) -> None:
    x = np.arange(threads, dtype=np.uint32)
    for seed in ORDERS:
        body = "bar.sync 0;\nshfl.sync.bfly.b32 %out, %v, 0, 31, -1;\nvote.sync.ballot.b32 %out, 1, -1;\nbar.sync 0;"
        body = body.replace("vote.sync.ballot.b32 %out, 1, -1;", "activemask.b32 %out;")
        whole = np.minimum(threads - x // 32 * 32, 32).astype(np.uint64)
        assert np.array_equal(run(body, x, seed=seed), (np.uint64(1) << whole) - np.uint64(1))


def test_exited_lanes_do_not_hold_up_a_vote_but_an_operation_of_the_whole_warp() -> None:
    body = "mov.u32 %out, 0;\nsetp.ge.u32 %p, %t, 20;\n@%p exit;\nvote.sync.ballot.b32 %out, !%p, -1;\n"
    x = np.zeros(32, np.uint32)
    got = run(body, x)
    assert got[:20].tolist() == [(1 << 20) - 1] * 20
    with pytest.raises(KernelError, match=r"convergence: lanes 20, .* exited before an operation of the whole warp"):
        run(body + "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%out}, [%r0];", x)


def test_lanes_that_a_mask_names_must_come() -> None:
    body = "mov.u32 %out, 0;\nsetp.lt.u32 %p, %t, {reach};\n@%p redux.sync.add.u32 %out, %v, 0x3FF;\nbar.warp.sync -1;"
    x = np.arange(32, dtype=np.uint32)
    assert run(body.replace("{reach}", "10"), x).tolist() == [45] * 10 + [0] * 22
    with pytest.raises(KernelError, match="convergence: waits for lane 9 of a warp"):
        run(body.replace("{reach}", "9"), x)
    with pytest.raises(KernelError, match="lane 10 is not in its own mask"):
        run(body.replace("{reach}", "11"), x)


def test_a_vote_goes_on_when_the_lanes_it_waits_for_exit() -> None:
    # The voters stand at the lower program counter, so they come first and wait.
    body = "mov.u32 %out, 0;\nsetp.ge.u32 %p, %t, 20;\n@%p bra leave;\nvote.sync.ballot.b32 %out, !%p, -1;\nbra end;\n"
    body += "leave:\nadd.u32 %v, %v, 1;\nexit;\nend:"
    assert run(body, np.zeros(32, np.uint32))[:20].tolist() == [(1 << 20) - 1] * 20


@pytest.mark.parametrize("seed", ORDERS)
def test_warps_must_meet_at_one_barrier(seed: int | None) -> None:
    body = "mov.u32 %out, 0;\nsetp.lt.u32 %p, %t, 32;\n@%p bra first;\nbar.sync 0;\nbra end;\nfirst:\nbar.sync 0;\nend:"
    with pytest.raises(KernelError, match="barrier: the block's warps meet at different barriers"):
        run(body, np.zeros(64, np.uint32), seed=seed)
    with pytest.raises(KernelError, match="barrier: threads wait at different barriers and none is complete"):
        run(body.replace("bar.sync 0;\nbra", "bar.sync 1;\nbra"), np.zeros(64, np.uint32), seed=seed)
    with pytest.raises(KernelError, match="barrier: threads differ in the barrier number"):
        run("mov.u32 %out, 0;\nbar.sync %t;", np.zeros(32, np.uint32), seed=seed)


@pytest.mark.parametrize(
    "body",
    [
        "shfl.down.b32 %out, %v, 1, 31;",
        "vote.ballot.b32 %out, %p;",
        "bar.arrive 0, 64;",
        "barrier.sync 0;",
        "elect.sync %out|%p, -1;",
        "redux.sync.min.f32 %out, %v, -1;",
        "barrier.cluster.arrive;",
        "match.any.sync.b32 %out|%p, %v, -1;",
    ],
)
def test_unknown_forms(body: str) -> None:
    with pytest.raises(UnsupportedPtx) as caught:
        run(body, np.zeros(32, np.uint32))
    assert body.rstrip(";") in str(caught.value)
