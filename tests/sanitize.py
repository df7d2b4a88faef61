"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer: builds them and runs their tests.

    python -m tests.sanitize [pytest arguments]

build/sanitize holds the build, and in `overlay` the package as links with the three instrumented libraries in it, which
comes first on PYTHONPATH. Tests that measure bytes do not apply and are left out, here alone: the sanitizer keeps freed
memory apart, and `tests.heap` reads glibc's allocator, which is not in use.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "sanitize"
PACKAGE = ROOT / "python" / "longspan"
FLAGS = "-fsanitize=address,undefined -fno-sanitize=vptr -fno-sanitize-recover=all -fno-omit-frame-pointer"
TESTS = ("tests/kernels", "tests/ops", "tests/fuzz")
BYTES = "op_check or opcheck or saved or bytes or keeps or leak or memory or transient or size_of_pairs or compile"


def build() -> Path:
    """The folder with the instrumented package; compiles what changed."""
    import pybind11

    sys.path.insert(0, str(ROOT))
    from build_backend import find_torch_root

    package = BUILD / "overlay" / "longspan"
    package.mkdir(parents=True, exist_ok=True)
    options = {
        "CMAKE_BUILD_TYPE": "Debug",
        "CMAKE_CXX_FLAGS_DEBUG": "-O1 -g1",
        "CMAKE_CXX_FLAGS": FLAGS,
        "LONGSPAN_CUDA": "OFF",
        "LONGSPAN_TORCH_ROOT": find_torch_root(),
        "LONGSPAN_OUT": package,
        "Python_EXECUTABLE": sys.executable,
        "pybind11_DIR": pybind11.get_cmake_dir(),
    }
    tools = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
    flags = [f"-D{key}={value}" for key, value in options.items()]
    subprocess.check_call(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(BUILD), *flags], env=tools)
    subprocess.check_call(["cmake", "--build", str(BUILD)], env=tools)
    for source in PACKAGE.iterdir():
        link = package / source.name
        if not source.name.endswith(".so") and source.name != "__pycache__" and not link.exists():
            link.symlink_to(source)
    return package.parent


def preloaded() -> str:
    """The sanitizers' libraries; libstdc++ before Python loads none, so that exceptions are seen."""
    names = ("libasan.so", "libubsan.so", "libstdc++.so.6")
    paths = [subprocess.check_output(["g++", f"-print-file-name={name}"], text=True).strip() for name in names]
    return ":".join(str(Path(path).resolve()) for path in paths)


def main() -> int:
    overlay = build()
    environment = {
        **os.environ,
        "PYTHONPATH": str(overlay),
        "LD_PRELOAD": preloaded(),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:abort_on_error=0",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    loaded = (
        "from longspan import _native as n; assert str(n.host().path).startswith(%r) and not n.ops().reason, n.ops()"
    )
    subprocess.check_call([sys.executable, "-c", loaded % str(overlay)], env=environment, cwd=ROOT)
    chosen = sys.argv[1:] or [*TESTS, "-m", "not sweep", "-k", f"not ({BYTES})"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:benchmark", *chosen]
    return subprocess.call(command, env=environment, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
