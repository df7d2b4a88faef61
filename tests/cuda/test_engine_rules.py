"""Every rule of the source engine bites: tiny kernels, each wrong on purpose in one way, and right without reports."""

from __future__ import annotations

import pytest

from tests.cuda import simt
from tests.cuda.engine_cases import CASES, SEEDS, Bug, bug_lines, evidence

BUGS = [
    # Races in a block: plain shows them as wrong values under some seed, hooks always.
    Bug("reverse", 1, "race", asan="value"),
    Bug("reverse", 2, "race"),
    Bug("exchange", 1, "race"),
    Bug("exchange", 2, "race"),
    Bug("relay", 1, "race"),
    Bug("late_write", 1, "race", plain=None),
    Bug("histogram", 1, "race"),
    Bug("histogram", 2, "race"),
    Bug("bytes", 1, "race"),
    Bug("large_copy", 1, "race"),
    # Races between blocks.
    Bug("total", 1, "race-across-blocks"),
    Bug("read_total", 1, "race-across-blocks"),
    Bug("shift", 1, "race-across-blocks"),
    Bug("overlap", 1, "race-across-blocks", plain=None),
    Bug("reread", 1, "race-across-blocks", plain=None),
    # Barriers.
    Bug("two_barriers", 1, "divergent-barrier", plain="rule", asan="rule"),
    Bug("instantiations", 1, "divergent-barrier", plain="rule", asan="rule"),
    Bug("counted", 1, "exit-before-barrier", plain="rule", asan="rule"),
    Bug("counted", 2, "divergent-barrier", plain="rule", asan="rule"),
    Bug("early_exit", 1, "exit-before-barrier", plain="rule", asan="rule"),
    # Warp operations.
    Bug("skip", 1, "divergent-warp", plain="rule", asan="rule"),
    Bug("own_mask", 1, "lane-not-in-mask", plain="rule", asan="rule"),
    Bug("inactive", 1, "inactive-source", plain="rule", asan="rule"),
    Bug("inactive", 2, "inactive-source", plain="rule", asan="rule"),
    Bug("returned", 1, "exit-before-warp", plain="rule", asan="rule"),
    Bug("two_shuffles", 1, "divergent-warp", plain="rule", asan="rule"),
    Bug("shuffle_and_vote", 1, "divergent-warp", plain="rule", asan="rule"),
    # Bounds.
    Bug("shared_static", 1, "out-of-bounds", plain="rule", asan="rule"),
    Bug("shared_static", 2, "out-of-bounds", asan="value"),
    Bug("shared_dynamic", 1, "out-of-bounds", plain="rule", asan="rule"),
    Bug("shared_dynamic", 2, "out-of-bounds", plain="rule", asan="rule"),
    Bug("shared_dynamic", 3, "out-of-bounds", plain="rule", asan="rule"),
    Bug("shared_dynamic", 4, "out-of-bounds", asan="rule"),
    *(Bug("global", mutant, "out-of-bounds", plain="rule", asan="rule") for mutant in (1, 2, 4, 5, 6)),
    Bug("global", 3, "out-of-bounds", asan="rule"),
    Bug("tail", 1, "out-of-bounds", plain="rule", asan="rule"),
    Bug("tail", 2, "none", hooks="value", asan="value"),
    Bug("tail", 3, "out-of-bounds", plain="rule", asan="rule"),
    Bug("far_rows", 1, "integer-overflow", plain=None, asan="rule"),
    Bug("stale", 1, "stale-pointer", plain="rule", asan="rule"),
    Bug("stale", 2, "stale-pointer", plain="rule", asan="rule", seeds=(0, 0, 1)),
    Bug("pointers", 1, "host-memory", plain=None),
    Bug("pointers", 2, "host-memory", plain=None),
    # Initialisation.
    Bug("shared", 1, "uninitialised"),
    Bug("shared", 2, "uninitialised"),
    Bug("accumulate", 1, "uninitialised"),
    # Undefined behaviour.
    Bug("vector_load", 1, "misaligned", asan="rule"),
    Bug("local_array", 1, "index", plain=None, asan="rule"),
    Bug("shift_count", 1, "shift", plain=None, asan="rule"),
    Bug("divide", 1, "division", plain="rule", asan="rule"),
    Bug("trap", 1, "trap", plain="rule", asan="rule"),
    # Launches.
    *(Bug("number", mutant, "launch", plain="rule", asan="rule") for mutant in (1, 2, 3, 4, 5)),
    Bug("number", 9, "none", hooks="value", asan="value"),
    Bug("static_bytes", 1, "launch", plain="rule", asan="rule", line=False),
    # cp.async.
    Bug("pipeline", 1, "in-flight"),
    Bug("pipeline", 2, "in-flight"),
    Bug("pipeline", 3, "in-flight", plain=None),
    Bug("pipeline", 4, "race"),
    Bug("pipeline", 5, "out-of-bounds", plain="rule", asan="rule"),
    Bug("pipeline", 6, "misaligned", plain="rule", asan="rule"),
    Bug("pipeline", 7, "misaligned", plain="rule", asan="rule"),
    Bug("pipeline", 8, "in-flight"),
    Bug("pipeline", 9, "race"),
    *(Bug("misuse", mutant, "out-of-bounds", plain="rule", asan="rule") for mutant in (1, 2, 3, 4)),
    # Tensor cores.
    *(Bug(product, mutant, "none", hooks="value") for product in ("product_bf16", "product_f16") for mutant in (1, 2)),
    Bug("product_bf16", 3, "misaligned", plain="rule", asan="rule"),
    Bug("product_bf16", 4, "out-of-bounds", plain="rule", asan="rule"),
    Bug("product_bf16", 5, "exit-before-warp", plain="rule", asan="rule"),
    Bug("product_bf16", 6, "divergent-warp", plain="rule", asan="rule"),
]


def _rows(build: simt.Build) -> list[object]:
    bugs = [bug for bug in BUGS if bug.shown_by(build)]
    return [pytest.param(bug, id=f"{bug.case}-{bug.mutant}-{bug.rule}") for bug in bugs]


@pytest.mark.parametrize("build", simt.BUILDS)
@pytest.mark.parametrize("name", CASES)
def test_a_right_kernel_has_no_reports(name: str, build: simt.Build) -> None:
    case = CASES[name]
    for seed in SEEDS:
        result = case.run(build, seed)
        assert not result.reports, result.text()
        assert case.is_right(result), (seed, result["output"], case.expected)


@pytest.mark.parametrize("bug", _rows("hooks"))
def test_hooks_finds(bug: Bug) -> None:
    found = evidence(CASES[bug.case], bug, "hooks")
    # Hooks must not depend on a lucky schedule: every seed finds it. A wrong value may need some seed.
    assert len({text.split(":")[0] for text in found}) >= (len(set(bug.seeds)) if bug.hooks == "rule" else 1), found


@pytest.mark.parametrize("bug", _rows("plain"))
def test_plain_finds(bug: Bug) -> None:
    assert evidence(CASES[bug.case], bug, "plain")


@pytest.mark.parametrize("bug", _rows("asan"))
def test_asan_finds(bug: Bug) -> None:
    assert evidence(CASES[bug.case], bug, "asan")


def test_every_bug_is_marked() -> None:
    for bug in BUGS:
        if bug.rule != "none" and bug.line:
            assert bug_lines(CASES[bug.case].file, bug.mutant), bug
