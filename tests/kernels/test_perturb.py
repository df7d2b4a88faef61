"""The kernels of noise without torch ops, against Philox and Box-Muller in NumPy written from the definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from longspan import kernels
from tests import machine
from tests.ops.lora_cases import philox4x32

ONE = np.float32([1])
SEED, STEP = np.array([-(2**62) + 12345]), np.array([2**31 + 9])
KEY = (int(SEED[0]) ^ int(STEP[0])) % 2**64


def words(count: int, first: int, tensor_id: int, stream: int) -> np.ndarray:
    """[count, 4] words of the counters from `first` on."""
    q = np.arange(first, first + count, dtype=np.uint64)
    counter = np.zeros((count, 4), np.uint64)
    counter[:, 0], counter[:, 1], counter[:, 2] = q % 2**32, q // 2**32, stream
    return philox4x32(counter, np.tile(np.array([KEY % 2**32, KEY // 2**32 ^ tensor_id], np.uint64), (count, 1)))


def gaussian(count: int, first: int, tensor_id: int, stream: int) -> np.ndarray:
    x = (words(count // 4, first // 4, tensor_id, stream).astype(np.float64) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(x[:, 0::2])), 2 * np.pi * x[:, 1::2]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(-1)


def signs(count: int, first: int, tensor_id: int, stream: int) -> np.ndarray:
    bits = words(count // 128, first // 128, tensor_id, stream)[:, :, None] >> np.arange(32, dtype=np.uint64) & 1
    return 1.0 - 2.0 * bits.reshape(-1).astype(np.float64)


def noise(count: int, distribution: str, threads: int = 1) -> np.ndarray:
    z = np.zeros(count, np.float32)
    options: dict[str, Any] = {"tensor_ids": [77], "offsets": [2**35], "noise_stream": 3, "threads": threads}
    kernels.perturb_([z], ONE, SEED, STEP, distribution=distribution, **options)
    return z


@pytest.mark.parametrize("isa", machine.instruction_sets())
def test_every_instruction_set_gives_the_noise_of_the_definition(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGSPAN_ISA", isa)
    count = 1 << 16
    assert np.abs(noise(count, "gaussian") - gaussian(count, 2**35, 77, 3)).max() < 1e-6
    assert np.array_equal(noise(count, "rademacher"), signs(count, 2**35, 77, 3))


@pytest.mark.parametrize("distribution", ["gaussian", "rademacher"])
def test_no_instruction_set_or_thread_changes_a_bit(distribution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for isa in machine.instruction_sets():
        monkeypatch.setenv("LONGSPAN_ISA", isa)
        found += [noise(100_003, distribution, threads) for threads in (1, 2, 5)]
    assert all(np.array_equal(each, found[0]) for each in found)


def test_bfloat16_sources_and_float32_targets() -> None:
    x = torch.randn(3, 50).bfloat16()
    y, shadow = np.empty((3, 50), np.float32), torch.empty(3, 50, dtype=torch.bfloat16)
    kernels.perturb_([y], ONE, SEED, STEP, sources=[x])
    kernels.perturb_([shadow], ONE, SEED, STEP, sources=[x])
    z = np.zeros((3, 50), np.float32)
    kernels.perturb_([z], ONE, SEED, STEP)
    assert np.array_equal(y, x.float().numpy() + z)
    assert torch.equal(shadow, torch.from_numpy(y).bfloat16())


def test_an_update_with_one_member_is_a_perturbation() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 200)).astype(np.float32)
    y[:] = x
    coefficient, alpha = np.float32([0.3]), np.float32([-0.7])
    kernels.es_update_([x], coefficient, SEED, STEP, alpha=alpha)
    kernels.perturb_([y], coefficient * alpha, SEED, STEP)
    assert np.array_equal(x, y)


def test_copies_and_decay() -> None:
    x, copy = [np.ones(5, np.float32), np.ones(3, np.float32)], [np.empty(5, np.float32), np.empty(3, np.float32)]
    kernels.es_update_(x, ONE * 0, SEED, STEP, decay=np.float32([0.25, 0]), copies=copy)
    assert [list(each) for each in x] == [[0.75] * 5, [1.0] * 3]
    assert all(np.array_equal(*pair) for pair in zip(x, copy, strict=True))


X, READ_ONLY = np.zeros((4, 3), np.float32), np.zeros(3, np.float32)
READ_ONLY.flags.writeable = False
BAD: dict[str, Callable[[], Any]] = {
    "targets is empty; give at least one array": lambda: kernels.perturb_([], ONE, SEED, STEP),
    "targets[0] must be contiguous": lambda: kernels.perturb_([X.T], ONE, SEED, STEP),
    "targets[1] is read-only; give an array that can be written": lambda: kernels.perturb_(
        [X, READ_ONLY], ONE, SEED, STEP
    ),
    "targets[0] is float64; allowed: float32, bfloat16": lambda: kernels.perturb_([X.astype(float)], ONE, SEED, STEP),
    "sources has 2 elements; targets has 1": lambda: kernels.perturb_([X], ONE, SEED, STEP, sources=[X, X]),
    "sources[0] has another shape than its target": lambda: kernels.perturb_([X], ONE, SEED, STEP, sources=[X[1:]]),
    "tensor_ids[0] is -1; allowed: 0 to 2^32 - 1": lambda: kernels.perturb_([X], ONE, SEED, STEP, tensor_ids=[-1]),
    "offsets[0] is -2; it must not be negative": lambda: kernels.perturb_([X], ONE, SEED, STEP, offsets=[-2]),
    "noise_stream is 4294967296; allowed: 0 to 2^32 - 1": lambda: kernels.perturb_(
        [X], ONE, SEED, STEP, noise_stream=2**32
    ),
    "distribution is 'cauchy'; allowed: gaussian, rademacher": lambda: kernels.perturb_(
        [X], ONE, SEED, STEP, distribution="cauchy"
    ),
    "scale is float64 [1]; it must be float32 [1]": lambda: kernels.perturb_([X], np.ones(1), SEED, STEP),
    "seeds is int64 [1]; it must be int64 [2]": lambda: kernels.es_update_([X], np.float32([1, 2]), SEED, STEP),
    "decay is float32 [1]; it must be float32 [2]": lambda: kernels.es_update_([X, X[:1]], ONE, SEED, STEP, decay=ONE),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
