"""Finds the CUDA toolkit: nvcc on the PATH, else the one that PyPI's wheels put into this environment."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from functools import cache
from pathlib import Path

# Wheels of one CUDA release unpack into one folder below site-packages.
_WHEEL_FOLDER = Path("nvidia") / "cu13"
WHEELS = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-cccl")


class MissingToolkit(RuntimeError):
    """There is no nvcc on this machine, or no CuTe."""


@cache
def nvcc() -> Path | None:
    """The compiler, None when there is none."""
    on_path = shutil.which("nvcc")
    if on_path is not None:
        return Path(on_path)
    in_wheels = wheel_root() / "bin" / "nvcc"
    return in_wheels if in_wheels.is_file() and os.access(in_wheels, os.X_OK) else None


def wheel_root() -> Path:
    """Where PyPI's wheels put the toolkit, whether it is there or not."""
    return Path(sysconfig.get_path("purelib")) / _WHEEL_FOLDER


def require() -> Path:
    """The compiler.

    Raises:
        MissingToolkit: There is none.
    """
    found = nvcc()
    if found is None:
        wheels = " ".join(f"'{name}==13.0.*'" for name in WHEELS)
        raise MissingToolkit(
            f"no nvcc: neither on the PATH nor below {wheel_root()}. Install CUDA 13 or: pip install --no-deps {wheels}"
        )
    return found


@cache
def include_dirs() -> list[Path]:
    """The folders of headers that nvcc itself searches: for compilers that read CUDA headers without it.

    Raises:
        MissingToolkit: There is no nvcc.
    """
    command = [str(require()), "--dryrun", "-x", "cu", os.devnull]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    lines = re.findall(r"^#\$ (?:SYSTEM_)?INCLUDES=(.*)$", shown, re.MULTILINE)
    paths = [text.removeprefix("-I") for line in lines for text in re.findall(r'"([^"]+)"', line) if text != "-isystem"]
    return [Path(path).resolve() for path in paths if Path(path).is_dir()]


@cache
def cutlass_include() -> Path:
    """CUTLASS's headers in PyPI's wheel nvidia-cutlass.

    Raises:
        MissingToolkit: The wheel is not installed.
    """
    found = importlib.util.find_spec("cutlass_library")
    if found is None or not found.submodule_search_locations:
        raise MissingToolkit("no CuTe headers: pip install --no-deps nvidia-cutlass==4.2.0.0")
    return Path(found.submodule_search_locations[0]) / "source" / "include"


@cache
def cute_include_dirs() -> list[Path]:
    """The folders that CuTe's headers need, beside the toolkit's, for compilers other than nvcc."""
    libraries = [folder / "cccl" for folder in include_dirs() if (folder / "cccl").is_dir()]
    return [cutlass_include(), *libraries]
