"""Drives CMake. Never imports torch: the stable ABI needs only its headers and the name libtorch_cpu.so."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
sys.path.insert(0, str(ROOT))
from build_backend import cuda_compiler, find_torch_root  # noqa: E402 - requirements and the build agree on one search

BYTES_PER_JOB = 3 << 30  # the largest compile job (one CUDA translation unit) stays below this


def build_jobs() -> int:
    """As many compile jobs as cores and memory allow; LONGSPAN_JOBS overrides."""
    if "LONGSPAN_JOBS" in os.environ:
        return max(1, int(os.environ["LONGSPAN_JOBS"]))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return max(1, min(len(os.sched_getaffinity(0)), memory // BYTES_PER_JOB))


def cuda_options() -> dict[str, object]:
    """What CMake is told about CUDA: the compiler, and CUTLASS's headers from PyPI's wheel."""
    compiler = cuda_compiler()
    if compiler is None:
        return {"LONGSPAN_CUDA": "OFF"}
    cutlass = importlib.util.find_spec("cutlass_library")
    if cutlass is None or cutlass.origin is None:
        sys.exit(
            "longspan: CUDA kernels need CUTLASS's headers; pip install --no-deps nvidia-cutlass, or LONGSPAN_CUDA=OFF"
        )
    include = Path(cutlass.origin).parent / "source" / "include"
    options: dict[str, object] = {"LONGSPAN_CUDA": "ON", "CMAKE_CUDA_COMPILER": compiler}
    # PyPI's toolkit has its libraries in lib; nvcc looks in lib64.
    libraries = Path(compiler).resolve().parents[1] / "lib"
    if (libraries / "libcudart_static.a").is_file():
        options["CMAKE_CUDA_FLAGS"] = f"-L{libraries}"
    return {**options, "LONGSPAN_CUTLASS_INCLUDE": include}


class CMakeBuild(build_ext):
    """Builds liblongspan_kernels.so, _ops.so and _host into the package."""

    def run(self) -> None:
        import pybind11

        torch_root = find_torch_root()
        if torch_root is None:
            sys.exit("longspan: no torch>=2.10 headers found; install torch first or set LONGSPAN_TORCH_ROOT")
        package = Path("python") if self.editable_mode else Path(self.build_lib)
        out = (package / "longspan").resolve()
        # An editable install keeps its objects, so that a rebuild compiles what changed.
        build = (ROOT / "build" / "editable" if self.editable_mode else Path(self.build_temp)).resolve()
        out.mkdir(parents=True, exist_ok=True)
        build.mkdir(parents=True, exist_ok=True)
        # A kept build folder remembers a ninja that an isolated build has since deleted.
        cache = build / "CMakeCache.txt"
        if cache.exists() and not shutil.which(self._cached(cache, "CMAKE_MAKE_PROGRAM")):
            cache.unlink()
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "LONGSPAN_TORCH_ROOT": torch_root,
            "LONGSPAN_OUT": out,
            **cuda_options(),
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
        }
        flags = [f"-D{key}={value}" for key, value in options.items()]
        subprocess.check_call(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build), *flags])
        subprocess.check_call(["cmake", "--build", str(build), "--parallel", str(build_jobs())])

    @staticmethod
    def _cached(cache: Path, key: str) -> str:
        lines = cache.read_text().splitlines()
        return next((line.split("=", 1)[1] for line in lines if line.startswith(f"{key}:")), "")


setup(ext_modules=[Extension("longspan._native_libraries", [])], cmdclass={"build_ext": CMakeBuild})
