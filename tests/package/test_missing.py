"""Without its libraries the package imports, says what is missing and why, and refuses only what needs them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.package.wheel import clean_environment

CALL = """
import torch, longspan
from longspan import _native
q = torch.randn(1, 2, 8, 16)
for call in (lambda: longspan.ops.attention(q, q, q), lambda: longspan.kernels.attention_fwd(q, q, q)):
    try:
        call()
    except _native.MissingBackendError as error:
        print(error)
    else:
        print("no error")
assert longspan.Recipe and longspan.patch
with torch.device("meta"):
    print("fake", tuple(torch.ops.longspan.attention_fwd.default(
        *(torch.empty(1, 2, 8, 16),) * 3, None, None, None, "full", True, 0, 0, 0, 0, 0, 1.0, 0.0)[0].shape))
"""


@pytest.fixture
def bare(root: Path, tmp_path: Path) -> Path:
    """A folder with the package and none of its libraries."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(root / "python" / "longspan", tmp_path / "longspan", ignore=ignored)
    return tmp_path


def python(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = clean_environment(PYTHONPATH=str(folder), **environment)
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False, cwd=folder, env=env
    )


def test_import_and_report_without_libraries(bare: Path) -> None:
    done = python(bare, "-c", f"import longspan; assert longspan.__file__.startswith({str(bare)!r})")
    assert done.returncode == 0, done.stderr
    done = python(bare, "-m", "longspan")
    assert done.returncode == 0, done.stderr
    assert "_ops.so is not in the installed package; build it with `pip install .`" in done.stdout
    assert "No module named 'longspan._host'" in done.stdout
    assert "missing (library did not load)" in done.stdout


def test_calls_without_libraries_raise_the_reason(bare: Path) -> None:
    done = python(bare, "-c", CALL)
    assert done.returncode == 0, done.stderr
    op, kernel, fake = done.stdout.splitlines()
    assert op.startswith("longspan::attention_fwd: the native library did not load: _ops.so is not in")
    assert kernel.startswith("longspan.kernels.attention_fwd: the native library did not load: No module named")
    assert fake == "fake (1, 2, 8, 16)"


def test_a_broken_library_gives_the_linkers_words(bare: Path) -> None:
    (bare / "longspan" / "_ops.so").write_bytes(b"not a library" * 100)
    done = python(bare, "-m", "longspan")
    assert done.returncode == 0, done.stderr
    assert "invalid ELF header" in done.stdout


def test_a_library_without_its_kernels_gives_the_linkers_words(root: Path, bare: Path) -> None:
    shutil.copy(root / "python" / "longspan" / "_ops.so", bare / "longspan" / "_ops.so")
    done = python(bare, "-m", "longspan")
    assert done.returncode == 0, done.stderr
    assert "liblongspan_kernels.so: cannot open shared object file" in done.stdout


def test_a_wrong_instruction_set_is_named(root: Path) -> None:
    folder = root / "python"
    message = "LONGSPAN_ISA is 'x86-64-v9'; this machine runs: "
    done = python(folder, "-m", "longspan", LONGSPAN_ISA="x86-64-v9")
    assert done.returncode == 0, done.stderr
    assert message in done.stdout
    for call in ("longspan.ops.attention(q, q, q)", "longspan.kernels.attention_fwd(q, q, q)"):
        code = f"import torch, longspan; q = torch.randn(1, 2, 8, 16); {call}"
        done = python(folder, "-c", code, LONGSPAN_ISA="x86-64-v9")
        assert done.returncode != 0
        assert f"ValueError: {message}" in done.stderr
