"""Seeds choose the order of threads and blocks: orders differ, a right kernel's bits do not."""

from __future__ import annotations

import numpy as np
import pytest

from tests.cuda import simt
from tests.cuda.engine_cases import run_case

BLOCKS, THREADS = 8, 32


def tickets(seed: int) -> np.ndarray:
    """When each thread came to an atomic counter."""
    n = BLOCKS * THREADS
    return run_case("ticket", np.zeros(1, np.int32), (BLOCKS, THREADS), np.int32, n=n, seed=seed)["output"]


def test_seed_zero_is_in_order() -> None:
    np.testing.assert_array_equal(tickets(0), np.arange(BLOCKS * THREADS).reshape(BLOCKS, THREADS))


def test_seeds_shuffle_threads_and_blocks() -> None:
    found = [tickets(seed) for seed in range(1, 9)]
    assert len({order.tobytes() for order in found}) == len(found)
    for order in found:
        # Blocks run one at a time, in another order; so do the threads of each.
        assert {tuple(sorted(row // THREADS)) for row in order} == {(b,) * THREADS for b in range(BLOCKS)}
        assert not np.array_equal(order[:, 0] // THREADS, np.arange(BLOCKS))
        assert (np.argsort(order[0]) != np.arange(THREADS)).any()


def test_one_seed_is_one_order() -> None:
    for seed in (1, 2):
        np.testing.assert_array_equal(tickets(seed), tickets(seed))


@pytest.mark.parametrize("build", simt.BUILDS)
def test_all_builds_run_one_order(build: simt.Build) -> None:
    n = BLOCKS * THREADS
    found = run_case("ticket", np.zeros(1, np.int32), (BLOCKS, THREADS), np.int32, n=n, seed=3, build=build)
    np.testing.assert_array_equal(found["output"], tickets(3))


def test_float_atomics_depend_on_the_order() -> None:
    """Why backward kernels have none: no rule is broken, and the bits differ."""
    x = np.random.default_rng(1).standard_normal(1024).astype(np.float32)
    results = [run_case("float_total", x, (1,), np.float32, n=1024, seed=seed) for seed in range(6)]
    assert not any(result.reports for result in results)
    assert len({result["output"].tobytes() for result in results}) > 1


def test_greedy_seeds_run_one_warp_ahead() -> None:
    """An even seed runs warps as far as they go: a whole warp comes before another begins."""
    n = 4 * 128
    order = run_case("warp_ticket", np.zeros(1, np.int32), (4, 4, 32), np.int32, n=n, seed=2)["output"]
    for block in order:
        ranks = np.argsort(block.reshape(-1)).reshape(4, 32) // 32
        assert (ranks == ranks[:, :1]).all()
    mixed = run_case("warp_ticket", np.zeros(1, np.int32), (4, 4, 32), np.int32, n=n, seed=1)["output"][0]
    ranks = np.argsort(mixed.reshape(-1)).reshape(4, 32) // 32
    assert (ranks != ranks[:, :1]).any()
