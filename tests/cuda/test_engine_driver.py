"""The driver: the example entry in every build, bad requests, crashes, reports that a person can read."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.cuda import simt
from tests.cuda.engine_cases import CASES, run_case

ROWS = np.random.default_rng(1).standard_normal((5, 1000)).astype(np.float32)


@pytest.mark.parametrize("build", simt.BUILDS)
def test_the_example_is_right(build: simt.Build) -> None:
    results = [simt.run("row_sums", {"values": ROWS}, build=build, seed=seed, library="rules") for seed in range(4)]
    for result in results:
        assert not result.reports, result.text()
        np.testing.assert_allclose(result["sums"], ROWS.astype(np.float64).sum(1), rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(result["sums"], results[0]["sums"])
        assert result.unwritten == {"sums": 0}
        assert result.statistics["threads"] == 5 * 128


def test_the_example_has_a_mutant() -> None:
    assert "race" in simt.run("row_sums", {"values": ROWS}, build="hooks", mutant=1, library="rules").rules()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("no_such", {}, "no entry is called 'no_such'; there are: .*row_sums"),
        ("row_sums", {}, "the argument 'values' is missing"),
        ("row_sums", {"values": 3}, "'values' is not an array|cast"),
        ("row_sums", {"values": ROWS.astype(np.float64)}, "'values' has elements of 8 bytes, the entry reads 4"),
    ],
)
@pytest.mark.parametrize("build", ["plain", "hooks"])
def test_bad_requests(name: str, arguments: dict, message: str, build: simt.Build) -> None:
    with pytest.raises(RuntimeError, match=message):
        simt.run(name, arguments, build=build, library="rules")


def test_a_report_tells_where_and_who() -> None:
    result = CASES["reverse"].run("hooks", mutant=1)
    report = next(r for r in result.reports if r.rule == "race")
    assert report.kernel.endswith("reverse_kernel(int const*, int*, int)")
    assert report.file == report.other_file == "tests/cuda/rules/race.cu"
    assert report.block == (0, 0, 0)
    assert report.thread is not None
    assert report.array == "tile"
    assert 0 <= report.offset < 512
    assert report.other_thread not in (None, report.thread[0])
    assert report.count > 1
    pattern = r"race: (read|write) of 4 bytes at tile\+\d+ \(of 512 bytes\).* no barrier between\n"
    pattern += r"  at tests/cuda/rules/race.cu:\d+"
    assert re.match(pattern, str(report)), str(report)


def test_outputs_that_are_not_written_are_counted() -> None:
    for build in simt.BUILDS:
        result = CASES["tail"].run(build, mutant=2)  # a block too few: 90 elements, 64 written
        assert result.unwritten == {"output": 26 * 4}
        assert np.isnan(result["output"][64:]).all()


def test_a_refused_launch_is_an_error_and_a_report() -> None:
    result = CASES["number"].run("plain", mutant=1)
    assert result.error.startswith("number: error")
    assert "1056" in result.error or result.rules() == {"launch"}
    assert "32 x 33 x 1" in result.reports[0].message


def test_a_stack_that_is_too_small_is_named() -> None:
    for build in ("plain", "hooks"):
        result = run_case("deep", np.zeros(1, np.int32), (32,), np.int32, mutant=1, build=build)
        assert "stack-overflow" in result.rules(), result.text()


def test_a_crash_of_a_worker_is_an_error_with_its_output() -> None:
    with pytest.raises(RuntimeError, match="worker ended with -11 in rule"):
        run_case("host_crash", np.zeros(1, np.int32), (1,), np.int32, build="hooks")
    # The next request gets a new worker.
    assert CASES["reverse"].is_right(CASES["reverse"].run("hooks"))


def test_runs_leave_nothing_behind() -> None:
    """Reports, statistics and mutants are of one run, also after one that ended threads by a fault."""
    for build in simt.BUILDS:
        assert CASES["global"].run(build, mutant=6).reports
        clean = CASES["global"].run(build)
        assert not clean.reports, clean.text()
        assert clean.statistics["launches"] == 1
