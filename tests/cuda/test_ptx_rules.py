"""What the PTX engine finds: one tiny kernel per rule, wrong on purpose, and its right twin without a complaint."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.cuda.ptx import KernelError, Memory, Module
from tests.cuda.ptx.harness import kernel_module, marked_line
from tests.cuda.ptx.module import Parameter
from tests.cuda.ptx.types import Array

SEEDS = (0, 1, 2, 3)
EVERY = (None, *SEEDS)


@dataclass(frozen=True)
class Case:
    """A kernel pair of rules.cu.

    Attributes:
        rule: What the report must begin with.
        words: What it must say.
        x: Elements of the input, 0 for none.
        y: Elements of the output.
        more: Parameters after the two buffers.
        block: Threads.
        grid: Blocks.
        dynamic: Bytes of dynamic shared memory.
        lock_step: Whether lock-step finds it too.
    """

    rule: str
    words: str
    x: int = 128
    y: int = 128
    more: tuple[int, ...] = ()
    block: int = 128
    grid: int = 1
    dynamic: int = 0
    lock_step: bool = True
    dtype: str = "f4"
    types: tuple[str, ...] = field(default=("x", "y"))


CASES = {
    "missing_barrier": Case("uninitialised read", "shared 'values'", lock_step=False),
    "unmasked_tail": Case("out of bounds", "0 bytes past the end of global 'x' (400 bytes)", 100, 100, (100,)),
    "underrun": Case("out of bounds", "4 bytes before global 'x'"),
    "static_overrun": Case("out of bounds", "0 bytes past the end of shared 'first' (512 bytes)"),
    "dynamic_overrun": Case("out of bounds", "0 bytes past the end of shared 'dynamic shared memory'", dynamic=512),
    "offset_overflow": Case("out of bounds", "far from every buffer", 1, 32, (0x7FFFFFFF,), 32),
    "misaligned": Case("misaligned", "load of 16 bytes at byte 4 of global 'x'", 600, 512),
    "skipped_shuffle": Case("convergence", "waits for lanes 30, 31 of a warp"),
    "inactive_source": Case("convergence", "reads from lane 20, which does not take part"),
    "outside_own_mask": Case("convergence", "lane 16 is not in its own mask 0x0000ffff"),
    "differing_masks": Case("convergence", "different masks, 0x0000ffff and 0xffffffff"),
    "divergent_barrier": Case("barrier", "waits for lane 7 of a warp"),
    "barriers_differ": Case("barrier", "32 of 128 threads are at the barrier and 96 have exited"),
    "exit_before_barrier": Case("barrier", "96 of 128 threads are at the barrier and 32 have exited"),
    "short_wait": Case("copy in flight", "load of 4 bytes at byte 2048 of shared", 1024),
    "store_on_copy": Case("copy in flight", "store of 4 bytes at byte 0 of shared", 512),
    "misaligned_copy": Case("misaligned", "cp.async of 16 bytes", 516),
    "uninitialised_shared": Case("uninitialised read", "load of 4 bytes at byte 160 of shared"),
    "uninitialised_global": Case("uninitialised read", "global 'x'", 0),
    "part_of_a_warp": Case("convergence", "lane 31 of a warp", 256, 32, block=32, dtype="f2"),
    "failing_assert": Case("assert", "x[threadIdx.x] < 10.f"),
    "endless": Case("no progress", "still running after 20000 instructions", dtype="i4"),
}


@pytest.fixture(scope="module")
def module() -> Module:
    return kernel_module("rules")


def launch(module: Module, name: str, wrong: bool, case: Case, seed: int | None) -> Array:
    memory = Memory()
    dtype = np.dtype(case.dtype)
    x = memory.upload("x", np.arange(case.x).astype(dtype)) if case.x else memory.output("x", 128, dtype)
    y = memory.output("y", case.y, dtype if dtype.kind == "i" else np.float32)
    kernel = f"{name}<{str(wrong).lower()}>"
    parameters: list[Parameter] = [x, y, *case.more]
    module.run(kernel, case.grid, case.block, case.dynamic, parameters, memory, seed, limit=20_000)
    return memory.download("y")


def report(module: Module, name: str, case: Case, seed: int | None) -> KernelError | None:
    """What is said of the wrong kernel."""
    try:
        launch(module, name, True, case, seed)
    except KernelError as error:
        return error
    return None


@pytest.mark.parametrize("name", CASES)
def test_wrong_kernel_is_reported(name: str, module: Module) -> None:
    case = CASES[name]
    found = {seed: error for seed in EVERY if (error := report(module, name, case, seed)) is not None}
    # A race need not show in every order; all else must.
    assert len(found) >= (len(EVERY) if case.lock_step else 1)
    for seed, error in found.items():
        assert name in error.kernel
        assert str(error).count("\n") == 3
        # In random order a consequence of the bug may come first.
        if seed is None or not case.lock_step:
            assert error.rule == case.rule
            assert case.words in error.message
            line = f"rules.cu:{marked_line('rules', f'BUG {name}')}"
            assert re.search(rf"{line}\b", str(error)), str(error)


@pytest.mark.parametrize("name", CASES)
def test_right_kernel_passes_in_every_order(name: str, module: Module) -> None:
    case = CASES[name]
    outputs = [launch(module, name, False, case, seed) for seed in EVERY]
    for output in outputs[1:]:
        assert output.tobytes() == outputs[0].tobytes()


@pytest.mark.parametrize(("name", "size"), [("early_reuse", 512), ("lost_update", 128)])
def test_races_on_values_change_the_result(name: str, size: int, module: Module) -> None:
    def run(wrong: bool, seed: int | None) -> Array:
        memory = Memory()
        dtype = np.float32 if name == "early_reuse" else np.int32
        pointers = [memory.upload("x", np.arange(512, dtype=np.float32))] if name == "early_reuse" else []
        pointers.append(memory.output("y", size, dtype))
        module.run(f"{name}<{str(wrong).lower()}>", 1, 128, 0, pointers, memory, seed)
        return memory.download("y")

    expected = run(False, None)
    if name == "early_reuse":
        rows = np.arange(512).reshape(4, 128)
        assert np.array_equal(expected, np.roll(rows, -32, 1).reshape(-1))
    else:
        assert (expected == 32).all()
    assert all(np.array_equal(run(False, seed), expected) for seed in SEEDS)
    assert any(not np.array_equal(run(True, seed), expected) for seed in EVERY)


def test_report_names_block_thread_instruction_and_source(module: Module) -> None:
    memory = Memory()
    x = memory.upload("x", np.zeros(100, np.float32))
    y = memory.output("y", 100, np.float32)
    with pytest.raises(KernelError) as caught:
        module.run("unmasked_tail<true>", 2, 64, 0, [x, y, 100], memory)
    error = caught.value
    assert error.block == (1, 0, 0)
    assert error.thread == (36, 0, 0)
    assert error.instruction.startswith("ld.global.f32")
    assert error.source is not None
    assert error.source.endswith(f"rules.cu:{marked_line('rules', 'BUG unmasked_tail')}")
    text = module.program.function(module.kernel("unmasked_tail<true>").name).instructions
    assert any(i.line == error.ptx_line and i.text == error.instruction for i in text)


def test_grid_too_small_leaves_elements_unwritten(module: Module) -> None:
    memory = Memory()
    x = memory.upload("x", np.zeros(100, np.float32))
    y = memory.output("y", 100, np.float32)
    module.run("unmasked_tail<false>", 1, 64, 0, [x, y, 100], memory)
    assert memory.unwritten("y").tolist() == [False] * 64 + [True] * 36
    assert np.isnan(memory.download("y")[64:]).all()


def test_freed_buffer_is_out_of_bounds(module: Module) -> None:
    memory = Memory()
    x = memory.upload("x", np.zeros(100, np.float32))
    y = memory.output("y", 100, np.float32)
    memory.free("x")
    with pytest.raises(KernelError, match=r"out of bounds: load of 4 bytes at byte 0 of global 'x \(freed\)'"):
        module.run("unmasked_tail<false>", 2, 64, 0, [x, y, 100], memory)


def test_pointer_of_another_memory_is_out_of_bounds(module: Module) -> None:
    old, memory = Memory(), Memory()
    for i in range(20):
        x = old.upload(f"x{i}", np.zeros(10**6, np.float32))
    y = memory.output("y", 100, np.float32)
    with pytest.raises(KernelError, match="out of bounds"):
        module.run("unmasked_tail<false>", 2, 64, 0, [x, y, 100], memory)
