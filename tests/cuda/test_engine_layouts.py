"""Fragments of mma and ldmatrix are as CuTe's own layout tables say."""

from __future__ import annotations

import os
import subprocess

import numpy as np
import pytest

from tests.cuda import simt, toolkit
from tests.cuda.engine_cases import RULES, run_case

LANES, M, N, K = 32, 16, 8, 16


@pytest.fixture(scope="module")
def tables() -> dict[str, np.ndarray]:
    """Name -> [lane, value] indices, printed by a host program on CuTe's headers."""
    program = simt.FOLDER / "cute_layouts"
    program.parent.mkdir(parents=True, exist_ok=True)
    folders = [*toolkit.cute_include_dirs(), *toolkit.include_dirs()]
    includes = [word for folder in folders for word in ("-isystem", str(folder))]
    compiler = [os.environ.get("CXX", "g++"), "-std=c++17", "-O0", "-w", *includes]
    subprocess.run([*compiler, str(RULES / "cute_layouts.cpp"), "-o", str(program)], check=True)
    lines = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {}
    for line in lines:
        name, threads, values, *indices = line.split()
        found[name] = np.array(indices, int).reshape(int(values), int(threads)).T
    return found


def test_tables_are_whole(tables: dict[str, np.ndarray]) -> None:
    """Each names every element once."""
    sizes = {"a": M * K, "b": N * K, "c": M * N}
    for name, table in tables.items():
        size = sizes.get(name.split("_")[-1], LANES * 128)
        np.testing.assert_array_equal(np.sort(table.ravel()), np.arange(size), err_msg=name)


@pytest.mark.parametrize("dtype", ["bf16", "f16"])
def test_mma(tables: dict[str, np.ndarray], dtype: str) -> None:
    """CuTe counts the elements of a [M, K], b [N, K] and c [M, N] with the first index fastest."""
    rng = np.random.default_rng(1)
    a, b = rng.integers(-8, 9, (M, K)).astype(np.float32), rng.integers(-8, 9, (N, K)).astype(np.float32)

    def bits(x: np.ndarray) -> np.ndarray:
        return (x.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bf16" else x.astype(np.float16).view(np.uint16)

    in_a = bits(a).ravel(order="F")[tables[f"{dtype}_a"]]
    in_b = bits(b).ravel(order="F")[tables[f"{dtype}_b"]]
    registers = np.ascontiguousarray(np.concatenate([in_a, in_b], axis=1)).view(np.uint32)
    assert registers.shape == (LANES, 6)
    found = run_case(f"fragments_{dtype}", registers, (LANES, 4), np.float32)["output"]
    np.testing.assert_array_equal(found, (a @ b.T).ravel(order="F")[tables[f"{dtype}_c"]])


def test_ldmatrix(tables: dict[str, np.ndarray]) -> None:
    """CuTe counts bits: each lane brings a row of 128 and gets four registers of 32."""
    rows = np.random.default_rng(2).integers(0, 1 << 16, (LANES, 8), dtype=np.uint16)
    source = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little")
    found = run_case("ldmatrix", rows, (2, LANES, 4), np.uint32)["output"]
    for form, name in enumerate(("ldmatrix", "ldmatrix_trans")):
        bits = np.zeros(LANES * 128, np.uint8)
        bits[tables[f"{name}_source"].ravel()] = source.ravel()
        packed = np.packbits(bits[tables[f"{name}_target"]], axis=1, bitorder="little")
        got = np.ascontiguousarray(packed).view(np.uint32)
        np.testing.assert_array_equal(found[form], got, err_msg=name)
