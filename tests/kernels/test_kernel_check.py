"""The kernel library alone, without torch or Python: under sanitizers, and on aarch64 under an emulator.

`kernel_check.cpp` compares attention with a plain double loop, `codes_check.cpp` the choice of keys with its
definition, `loss_check.cpp` the matrix product and the loss, `noise_check.cpp` noise bit for bit. Where the cross
compiler or the emulator is absent, the aarch64 case is not collected and pytest's summary says so.
"""

from __future__ import annotations

import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import machine

SANITIZERS = "-fsanitize=address,undefined -fno-sanitize-recover=all"


@dataclass(frozen=True)
class Target:
    """How the library and the check program are built, and how the program is started."""

    compiler: str
    options: tuple[str, ...]
    flags: tuple[str, ...]
    start: tuple[str, ...]
    instruction_sets: tuple[str, ...]


NATIVE = Target(
    compiler="g++",
    options=("-DCMAKE_BUILD_TYPE=Debug", "-DCMAKE_CXX_FLAGS_DEBUG=-O1 -g1", f"-DCMAKE_CXX_FLAGS={SANITIZERS}"),
    flags=("-O1", *SANITIZERS.split()),
    start=(),
    instruction_sets=tuple(machine.instruction_sets()),
)
AARCH64 = Target(
    compiler="aarch64-linux-gnu-g++",
    options=(
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        "-DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++",
    ),
    flags=("-O2",),
    start=("qemu-aarch64-static", "-L", "/usr/aarch64-linux-gnu"),
    instruction_sets=("baseline",),
)
TARGETS = {"sanitized": NATIVE} | ({} if machine.missing_aarch64_tools() else {"aarch64": AARCH64})


def tool(name: str) -> str:
    """A build tool of the test environment, or of the system."""
    own = Path(sysconfig.get_path("scripts")) / name
    return str(own) if own.exists() else name


def run(*command: str | Path) -> str:
    """Output of a command; its text is the failure when it does not exit with 0."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, (
        f"{command[0]} exited with {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    )
    return done.stdout + done.stderr


def build(target: Target, sources: Path, programs: list[Path], out: Path) -> list[Path]:
    """The check programs linked to a kernel library built from `sources` without torch and without Python."""
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    configure = ("-G", "Ninja", ninja, "-S", sources, "-B", out / "build", "-DLONGSPAN_HOST=OFF", "-DLONGSPAN_CUDA=OFF")
    run(tool("cmake"), *configure, f"-DLONGSPAN_OUT={out}", *target.options)
    run(tool("cmake"), "--build", out / "build", "--target", "longspan_kernels", "--parallel", "2")
    include, library = f"-I{sources / 'csrc' / 'kernels'}", (f"-L{out}", "-llongspan_kernels", f"-Wl,-rpath,{out}")
    common = ("-std=gnu++20", "-Wall", "-Wextra", "-Werror", "-pthread", include)
    for program in programs:
        run(target.compiler, *common, *target.flags, program, "-o", out / program.stem, *library)
    return [out / program.stem for program in programs]


@pytest.mark.parametrize("name", TARGETS)
def test_kernels_match_a_plain_loop(name: str, root: Path, tmp_path: Path) -> None:
    target = TARGETS[name]
    stems = ("kernel_check", "codes_check", "loss_check", "noise_check")
    programs = [root / "tests" / "kernels" / f"{stem}.cpp" for stem in stems]
    for binary in build(target, root, programs, tmp_path):
        output = run(*target.start, binary, *target.instruction_sets)
        assert output.count("cases in float") == len(target.instruction_sets)
        assert output.rstrip().endswith("0 failures")
