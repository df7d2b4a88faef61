"""The parts of the static gate on hand-written input: parsing, control flow, steady state, occupancy, predictions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bench.static import __main__ as main
from bench.static import ptxas, sass
from bench.static.architectures import ARCHITECTURES, DEVICES
from bench.static.flow import Graph
from bench.static.kernels import Tile, readable, tile_of
from bench.static.launches import Attention
from bench.static.occupancy import occupancy
from bench.static.pipes import load_of, shared_bytes
from bench.static.predict import makespan
from bench.static.steady import main_loop, steady_state
from bench.static.workloads import AttentionWorkload, Pattern, visits
from tests.cuda.toolkit import MissingToolkit


def listing(lines: Sequence[str], name: str = "kernel") -> str:
    """A disassembly as nvdisasm prints it: `.L_x:` lines are labels, the others instructions."""
    text, offset = [f".text.{name}:"], 0
    for line in lines:
        if line.endswith(":"):
            text.append(line)
            continue
        text.append(f"        /*{offset:04x}*/                   {line} ;")
        offset += 16
    return "\n".join(text)


def function(lines: Sequence[str]) -> sass.Function:
    """The one function of a listing."""
    return sass.parse(listing(lines))[0]


# A main loop: a search that only some passes need, an optional prefetch, products, a mask that only some tiles need.
LOOP = [
    "S2R R0, SR_TID.X",
    ".L_head:",
    "@P0 BRA `(.L_found)",
    ".L_search:",
    "IADD3 R1, R1, 0x20, RZ",
    "@P1 BRA `(.L_search)",
    ".L_found:",
    "@!P2 BRA `(.L_last)",
    "LDGSTS.E.BYPASS.128.ZFILL [R4], [R2.64], P3",
    "BRA `(.L_wait)",
    ".L_last:",
    "DEPBAR.LE SB0, 0x0",
    ".L_wait:",
    "BAR.SYNC.DEFER_BLOCKING 0x0",
    "LDSM.16.M88.4 R8, [R5]",
    "HMMA.16816.F32.BF16 R12, R8.reuse, R16, R12",
    "HMMA.16816.F32.BF16 R20, R8, R18, R20",
    "@!P4 BRA `(.L_plain)",
    "FSEL R12, R12, -INF , P5",
    "FSEL R13, R13, -INF , P5",
    ".L_plain:",
    "MUFU.EX2 R12, R12",
    "@P6 BRA `(.L_head)",
    "STG.E [R2.64], R12",
    "EXIT",
    ".L_end:",
    "BRA `(.L_end)",
]


def test_parse_gives_predicates_modifiers_and_labels() -> None:
    code = function(LOOP)
    branch = code.instructions[1]
    assert (branch.predicate, branch.base, branch.targets) == ("@P0", "BRA", (".L_found",))
    copy = next(x for x in code.instructions if x.base == "LDGSTS")
    assert copy.modifiers == ("E", "BYPASS", "128", "ZFILL")
    assert code.labels[".L_head"] == 1
    assert code.instructions[1].offset == 0x10
    assert sass.mix(code.instructions)["HMMA"] == 2


def test_parse_refuses_what_it_does_not_know() -> None:
    with pytest.raises(sass.SassError, match="line 2 of the disassembly"):
        sass.parse(".text.kernel:\n        /*0000*/  { two; halves }")
    with pytest.raises(sass.SassError, match=r"no `\.text"):
        sass.parse("nothing")


def test_loops_and_main_loop() -> None:
    graph = Graph(function(LOOP))
    headers = {graph.blocks[loop.header].instructions[0].opcode for loop in graph.loops()}
    assert headers == {"BRA", "IADD3"}  # the main loop and the search; the spacer behind EXIT is not reachable
    assert graph.blocks[main_loop(graph, ("HMMA",)).header].offset == 0x10


@pytest.mark.parametrize(
    ("lines", "reachable"),
    [
        (["@P0 EXIT", "NOP", "EXIT"], 2),
        (["EXIT", "NOP"], 1),
        (["BRA P0, `(.L_x)", "NOP", ".L_x:", "EXIT"], 3),  # a condition among the operands
        (["BRA.U !UP0, `(.L_x)", "NOP", ".L_x:", "EXIT"], 3),
        (["BRA `(.L_x)", "NOP", ".L_x:", "EXIT"], 2),
        (["BSSY B0, `(.L_x)", "BSYNC B0", "NOP", ".L_x:", "EXIT"], 2),  # the threads meet at the label
        (["CALL.REL.NOINC `($divide)", "NOP", "EXIT", "$divide:", "RET.REL.NODEC R2 `(kernel)"], 2),
        (["CALL.REL.NOINC `(.L_x)", "NOP", "EXIT", ".L_x:", "EXIT"], 3),  # a jump in the guise of a call
        (['BRX R2 -0x10 (*"BRANCH_TARGETS .L_x,.L_y"*)', ".L_x:", "EXIT", ".L_y:", "EXIT"], 3),
    ],
)
def test_control_flow(lines: list[str], reachable: int) -> None:
    assert len(Graph(function(lines)).reachable) == reachable


@pytest.mark.parametrize(
    ("lines", "message"),
    [(["BRA `(.L_gone)"], "goes to .L_gone"), (["BRX R2 -0x10"], "jumps to targets that are not listed")],
)
def test_control_flow_that_is_not_understood(lines: list[str], message: str) -> None:
    with pytest.raises(sass.SassError, match=message):
        Graph(function(lines))


def test_steady_state_fetches_and_multiplies_but_neither_searches_nor_masks() -> None:
    found = steady_state(function(LOOP))
    assert [x.base for x in found.instructions] == [
        *("BRA", "BRA", "LDGSTS", "BRA", "BAR", "LDSM", "HMMA", "HMMA", "BRA", "MUFU", "BRA")
    ]
    assert found.tensor_share(8) == pytest.approx(16 / (16 + 9))


def test_the_cheapest_of_two_copies_counts() -> None:
    fast = ["LDGSTS.E.128 [R4], [R2.64]", "BRA `(.L_wait)"]
    slow = ["ISETP.GE.AND P3, PT, R1, R2, PT", *["IADD3 R1, R1, 0x1, RZ"] * 9, "LDGSTS.E.128 [R4], [R2.64], P3"]
    begin, end = LOOP.index("LDGSTS.E.BYPASS.128.ZFILL [R4], [R2.64], P3"), LOOP.index(".L_wait:")
    both = [*LOOP[:begin], *fast, ".L_last:", *slow, *LOOP[end:]]
    found = steady_state(function(both))
    assert found.mix["IADD3"] == 0
    assert len(found.instructions) == 11


def test_a_slow_loop_has_a_small_share() -> None:
    at = LOOP.index("MUFU.EX2 R12, R12")
    slow = [*LOOP[:at], *["FFMA R1, R1, R2, R3"] * 100, *LOOP[at:]]
    assert steady_state(function(slow)).tensor_share(8) == pytest.approx(16 / (16 + 109))


def test_products_outside_the_loop_do_not_count() -> None:
    more = ["HMMA.16816.F32.BF16 R12, R8, R16, R12", *LOOP]
    assert steady_state(function(more)).mix["HMMA"] == 2


def test_an_unrolled_loop_counts_all_its_tiles() -> None:
    begin, end = LOOP.index("LDSM.16.M88.4 R8, [R5]"), LOOP.index("@!P4 BRA `(.L_plain)")
    twice = [*LOOP[:end], *LOOP[begin:end], *LOOP[end:]]
    assert steady_state(function(twice)).mix["HMMA"] == 4


def test_what_has_no_steady_state_is_refused() -> None:
    with pytest.raises(sass.SassError, match="no loop contains HMMA"):
        steady_state(function(["HMMA.16816.F32.BF16 R12, R8, R16, R12", "EXIT"]))
    at = LOOP.index("LDSM.16.M88.4 R8, [R5]")
    rolled = [*LOOP[:at], ".L_inner:", LOOP[at], "@P5 BRA `(.L_inner)", *LOOP[at + 1 :]]
    with pytest.raises(sass.SassError, match=r"in a loop inside the main loop: how often is unknown"):
        steady_state(function(rolled))


@pytest.mark.parametrize(
    ("opcode", "bytes_moved"),
    [
        ("LDSM.16.M88.4 R8, [R5]", 512),
        ("LDSM.16.MT88.2 R8, [R5]", 256),
        ("LDGSTS.E.BYPASS.128.ZFILL [R4], [R2.64], P3", 512),
        ("LDS.64 R8, [R5]", 256),
        ("LDS R8, [R5]", 128),
        ("STS.U16 [R5], R8", 64),
        ("SHFL.BFLY PT, R1, R2, 0x1, 0x1f", 128),
        ("@!PT LDS RZ, [RZ]", 0),
        ("FFMA R1, R2, R3, R4", 0),
    ],
)
def test_shared_bytes(opcode: str, bytes_moved: int) -> None:
    assert shared_bytes(function([opcode]).instructions[0]) == bytes_moved


def test_load_of_a_stretch() -> None:
    device = DEVICES["A100 SXM 80GB"]
    code = function(
        ["HMMA.16816.F32.BF16 R0, R8, R16, R0", "FFMA R1, R2, R3, R4", "MUFU.EX2 R1, R1", "LDSM.16.M88.4 R8, [R5]"]
    )
    load = load_of(code.instructions, device, warps=4)
    assert load.tensor == pytest.approx(8, rel=1e-2)  # one warp on each scheduler
    assert (load.issue, load.float32, load.special, load.shared) == (4, 2, 8, 16)
    assert load.serial == pytest.approx(8 + 3, rel=1e-2)
    assert load.bound == ("shared", 16)


def test_cycles_of_a_product_follow_from_the_datasheets() -> None:
    assert [round(device.hmma_cycles, 1) for device in DEVICES.values()] == [8, 4, 32]


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "blocks", "limit"),
    [
        ("sm_80", 255, 65536, 128, 2, "shared memory"),
        ("sm_80", 255, 0, 128, 2, "registers"),
        ("sm_80", 32, 0, 256, 8, "warps"),
        ("sm_80", 16, 0, 32, 32, "blocks"),
        ("sm_80", 168, 0, 128, 3, "registers"),
        ("sm_80", 169, 0, 128, 2, "registers"),  # 176 in units of 256 a warp: 11 warps, 8 in fours
        ("sm_86", 32, 0, 256, 6, "warps"),
        ("sm_89", 128, 65536, 128, 1, "shared memory"),
        ("sm_90", 128, 65536, 128, 3, "shared memory"),
        ("sm_86", 32, 100 * 1024, 128, 0, "shared memory"),
    ],
)
def test_occupancy(arch: str, registers: int, shared: int, threads: int, blocks: int, limit: str) -> None:
    found = occupancy(ARCHITECTURES[arch], registers, shared, threads)
    assert (found.blocks, found.limit) == (blocks, limit)
    assert found.share == found.warps / ARCHITECTURES[arch].warps


def test_occupancy_of_no_threads() -> None:
    with pytest.raises(ValueError, match="a block of 0 threads"):
        occupancy(ARCHITECTURES["sm_80"], 32, 0, 0)


PTXAS = """
ptxas info    : Compiling entry function '_Z1kv' for 'sm_80'
ptxas info    : Function properties for _Z1kv
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 64 bytes smem, 360 bytes cmem[0]
ptxas info    : Function properties for helper
    16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function '_Z1kv' for 'sm_90'
ptxas info    : Function properties for _Z1kv
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 38 registers
"""


def test_ptxas_figures() -> None:
    found = ptxas.parse(PTXAS)
    assert found["sm_80", "_Z1kv"] == ptxas.Usage(registers=40, shared=64, stack=24, spills=16)
    assert found["sm_90", "_Z1kv"] == ptxas.Usage(registers=38, shared=0, stack=0, spills=0)


def test_names_and_tiles() -> None:
    mangled = (
        "_ZN8longspan7kernels20attention_fwd_kernelI13__nv_bfloat16"
        "NS0_12ForwardShapeILi128ELi2ELi32ELi4EEELb1EEEvNS0_18AttentionArgumentsE"
    )
    name = readable([mangled])[mangled]
    assert name == "attention_fwd_kernel<__nv_bfloat16, ForwardShape<128, 2, 32, 4>, true>"
    tile = tile_of(name)
    assert tile == Tile(D=128, rows=128, keys=32, warps=4, products=2)
    assert tile.flop == 2 * (2 * 128 * 32 * 128)
    assert tile_of("prepare_kernel") is None
    with pytest.raises(ValueError, match="does not know the parameters of OtherShape<1, 2>"):
        tile_of("kernel<float, OtherShape<1, 2>, true>")


def test_gradients_in_parts_repeat_the_scores() -> None:
    tile = Tile(D=256, rows=16, keys=64, warps=4, products=4, parts=2, owns_keys=True)
    assert tile.flop == (2 + 2 / 2) * (2 * 16 * 64 * 256)


@pytest.mark.parametrize(
    "pattern", [Pattern("full"), Pattern("groups", 64), Pattern("window", 40)], ids=lambda p: p.kind
)
@pytest.mark.parametrize("owns_keys", [False, True])
def test_visits_are_the_tiles_with_a_visible_pair(pattern: Pattern, owns_keys: bool) -> None:
    tokens, heads, key_heads = 200, 4, 2
    tile = Tile(D=64, rows=32, keys=16, warps=2, products=4 if owns_keys else 2, owns_keys=owns_keys)
    workload = AttentionWorkload("", Attention("fwd", heads=heads, key_heads=key_heads, tokens=tokens, D=64), pattern)

    def seen(head: int, rows: range, keys: range) -> bool:
        shifted = pattern.kind == "groups" and head >= heads // 2
        return any(pattern.low(row, shifted) <= key <= row for row in rows for key in keys)

    rows = [range(i, min(i + tile.rows, tokens)) for i in range(0, tokens, tile.rows)]
    keys = [range(i, min(i + tile.keys, tokens)) for i in range(0, tokens, tile.keys)]
    if owns_keys:
        group = heads // key_heads
        expected = [
            sum(seen(head, r, k) for head in range(g * group, (g + 1) * group) for r in rows)
            for g in range(key_heads)
            for k in keys
        ]
    else:
        expected = [sum(seen(head, r, k) for k in keys) for head in range(heads) for r in reversed(rows)]
    assert list(visits(workload, tile)) == expected
    pairs = sum(
        row - pattern.low(row, pattern.kind == "groups" and head >= 2) + 1 for head in range(4) for row in range(tokens)
    )
    assert pattern.pairs(tokens, heads) == pairs


def test_makespan() -> None:
    assert makespan([3, 1, 1, 1], servers=2) == 3
    assert makespan([1, 1, 1], servers=2) == 2
    assert makespan([], servers=2) == 0


def test_a_missing_compiler_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(architectures: tuple[str, ...]) -> None:
        raise MissingToolkit("no nvcc: install it")

    monkeypatch.setattr(main, "collect", missing)
    assert main.main([]) == 2
    assert capsys.readouterr().err == "no nvcc: install it\n"
