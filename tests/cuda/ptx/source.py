"""Compiles CUDA sources to PTX."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from tests.cuda import toolkit


class CompileError(RuntimeError):
    """nvcc refused the source; the message is its output."""


def compile_ptx(
    source: Path,
    *,
    arch: str = "sm_80",
    defines: Sequence[str] = (),
    includes: Sequence[Path] = (),
    options: Sequence[str] = (),
) -> str:
    """The PTX of a CUDA source, with line numbers.

    Args:
        source: The .cu file.
        arch: Architecture.
        defines: Macros, "NAME" or "NAME=value".
        includes: Folders of headers.
        options: More options of nvcc, such as "--use_fast_math".
    """
    stamp = source.stat().st_mtime_ns
    return _compile(source.resolve(), stamp, arch, tuple(defines), tuple(includes), tuple(options))


@lru_cache(maxsize=64)
def _compile(
    source: Path,
    stamp: int,
    arch: str,
    defines: tuple[str, ...],
    includes: tuple[Path, ...],
    options: tuple[str, ...],
) -> str:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "kernel.ptx"
        command = [str(toolkit.require()), "-std=c++20", f"-arch={arch}", "-lineinfo", "-ptx", "-o", str(target)]
        command += [f"-D{name}" for name in defines]
        command += [f"-I{path}" for path in includes]
        done = subprocess.run([*command, *options, str(source)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(f"nvcc {source.name}:\n{done.stdout}{done.stderr}")
        return target.read_text(encoding="utf-8")
