"""Compiles kernel sources, once: results are kept in build/static under a hash of the inputs."""

from __future__ import annotations

import hashlib
import json
import re
import resource
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench.static import ptxas
from bench.static.architectures import ARCHITECTURES, DEVICES
from bench.static.tools import BUILD, KERNELS, run, tool
from tests.cuda import toolkit

FLAGS = ("-std=c++20", "-O3", "--expt-relaxed-constexpr", "-lineinfo", "-Xcompiler", "-Wall")
INCLUDES = (KERNELS,)
# What is compiled unless more is asked for: an assembler run each is most of the time.
USUAL = tuple(name for name in ARCHITECTURES if name in {device.architecture for device in DEVICES.values()})
_CUTE = re.compile(r"^\s*#\s*include\s*<cute/", re.MULTILINE)
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.MULTILINE)


class CompileWarning(RuntimeError):
    """The compiler warned; the kernels must compile without a word."""


@dataclass(frozen=True)
class Compiled:
    """One source: its object file (host code and all machine code), cubins by architecture, figures of ptxas."""

    source: Path
    object: Path
    cubins: dict[str, Path]
    ptx: Path  # for the oldest of the architectures, with line numbers
    usage: dict[tuple[str, str], ptxas.Usage]
    cpu_seconds: float  # that the compilation took when it ran


def sources() -> list[Path]:
    """All CUDA sources of the kernels."""
    return sorted(KERNELS.rglob("*.cu"))


@cache
def nvcc_version() -> str:
    """The release of the compiler, such as 13.0.88."""
    found = re.search(r"V(\d+\.\d+\.\d+)", run([tool("nvcc"), "--version"]))
    if not found:
        raise ValueError("nvcc --version names no release")
    return found[1]


def inputs(source: Path) -> list[Path]:
    """The source and every file of ours that it includes."""
    found: list[Path] = []
    stack = [source]
    while stack:
        path = stack.pop()
        if path in found:
            continue
        found.append(path)
        for name in _INCLUDE.findall(path.read_text(encoding="utf-8")):
            stack += [base / name for base in (path.parent, *INCLUDES) if (base / name).is_file()][:1]
    return sorted(found)


def includes(read: Iterable[Path]) -> list[str]:
    """nvcc's options for folders of headers. CUTLASS's, whose warnings are not ours, only where CuTe is included."""
    uses_cute = any(_CUTE.search(path.read_text(encoding="utf-8")) for path in read)
    return [*(f"-I{path}" for path in INCLUDES), *([f"-isystem={toolkit.cutlass_include()}"] if uses_cute else [])]


def gencode(names: Iterable[str]) -> list[str]:
    """nvcc's options for machine code of these architectures, and their PTX; each PTX is generated once."""
    by_virtual: dict[str, list[str]] = {}
    for name in names:
        by_virtual.setdefault(ARCHITECTURES[name].virtual, []).append(name)
    return [f"-gencode=arch={virtual},code=[{','.join([*real, virtual])}]" for virtual, real in by_virtual.items()]


def compile_source(source: Path, architectures: Sequence[str] = USUAL, build: Path = BUILD) -> Compiled:
    """Compiles, or takes what an earlier run left for these architectures or more.

    Raises CompileWarning, or ToolError with the compiler's output.
    """
    read = inputs(source)
    options = [*FLAGS, *includes(read)]
    # All architectures, whichever are asked for: a build for more of them serves a request for fewer.
    digest = hashlib.sha256("\0".join([nvcc_version(), *options, *gencode(ARCHITECTURES)]).encode())
    for path in read:
        digest.update(path.read_bytes())
    folder = build / f"{source.parent.name}-{source.stem}" / digest.hexdigest()[:16]
    done = _read(folder)
    if not set(architectures) <= set(done["architectures"]):
        _compile(source, options, architectures, folder)
        done = _read(folder)
    log = (folder / "log.txt").read_text(encoding="utf-8")
    warnings = [line for line in log.splitlines() if "warning" in line.lower()]
    if warnings:
        raise CompileWarning(f"{source.name}:\n" + "\n".join(warnings))
    cubins = {name: folder / f"{name}.cubin" for name in architectures}
    ptx = folder / f"{min(ARCHITECTURES[name].virtual for name in architectures)}.ptx"
    usage = {(arch, kernel): used for (arch, kernel), used in ptxas.parse(log).items() if arch in cubins}
    return Compiled(source, folder / "kernel.o", cubins, ptx, usage, done["cpu_seconds"])


def _read(folder: Path) -> dict[str, Any]:
    """What `_compile` noted when it had finished."""
    done = folder / "done.json"
    found: dict[str, Any] = json.loads(done.read_text(encoding="utf-8")) if done.is_file() else {"architectures": []}
    return found


def _compile(source: Path, options: Sequence[str], architectures: Sequence[str], folder: Path) -> None:
    shutil.rmtree(folder.parent, ignore_errors=True)  # what older versions of the source left
    folder.mkdir(parents=True)
    before = _cpu_seconds()
    log = run([tool("nvcc"), *options, *gencode(architectures), "-Xptxas=-v", "-c", source, "-o", folder / "kernel.o"])
    run([tool("cuobjdump"), "-xelf", "all", "kernel.o"], folder=folder)
    for path in folder.glob("*.cubin"):
        path.rename(folder / f"{path.name.split('.')[-2]}.cubin")  # kernel.1.sm_80.cubin
    run([tool("cuobjdump"), "-xptx", "all", "kernel.o"], folder=folder)
    for path in folder.glob("*.sm_*.ptx"):
        path.rename(folder / f"{path.name.split('.')[-2].replace('sm_', 'compute_')}.ptx")
    (folder / "log.txt").write_text(log, encoding="utf-8")
    done = {"architectures": list(architectures), "cpu_seconds": _cpu_seconds() - before}
    (folder / "done.json").write_text(json.dumps(done), encoding="utf-8")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def disassembly(cubin: Path) -> str:
    """The machine code of a cubin as text, kept beside it."""
    kept = cubin.with_suffix(".sass")
    if not kept.is_file():
        kept.write_text(run([tool("nvdisasm"), "-c", cubin]), encoding="utf-8")
    return kept.read_text(encoding="utf-8")
