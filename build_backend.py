"""In-tree PEP 517 backend: setuptools, plus torch as a build requirement only where no torch headers are found, and
CUTLASS's headers only where CUDA kernels are built.

pip keeps the target environment's site-packages visible through `sysconfig` in its isolated builds, so a torch that is
installed is found there and nothing is downloaded twice. Other front ends isolate fully: set LONGSPAN_TORCH_ROOT to the
installed `torch` folder, or let them fetch torch for its headers.
"""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from pathlib import Path

from setuptools.build_meta import (  # noqa: F401 - the hooks that a PEP 517 front end calls
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from setuptools.build_meta import get_requires_for_build_editable as _requires_editable
from setuptools.build_meta import get_requires_for_build_wheel as _requires_wheel

TORCH_REQUIREMENT = "torch>=2.10"
CUTLASS_REQUIREMENT = "nvidia-cutlass>=4.2"


def find_torch_root() -> Path | None:
    """The folder of a torch package with the ABI-stable headers, or None."""
    named = os.environ.get("LONGSPAN_TORCH_ROOT")
    if named:
        if not _has_headers(Path(named)):
            raise FileNotFoundError(
                f"LONGSPAN_TORCH_ROOT is '{named}', which has no include/torch/csrc/stable; "
                "it must be the folder of an installed torch package, 2.10 or newer"
            )
        return Path(named)
    folders = [Path(sysconfig.get_path(kind)) / "torch" for kind in ("purelib", "platlib")]
    folders += [Path(entry) / "torch" for entry in sys.path if entry]
    return next(filter(_has_headers, folders), None)


def _has_headers(folder: Path) -> bool:
    return (folder / "include" / "torch" / "csrc" / "stable").is_dir()


def cuda_compiler() -> str | None:
    """The nvcc of the CUDA kernels, None for a build without them: LONGSPAN_CUDA is AUTO (default), ON or OFF."""
    wanted = os.environ.get("LONGSPAN_CUDA", "AUTO")
    if wanted not in ("AUTO", "ON", "OFF"):
        raise ValueError(f"LONGSPAN_CUDA is '{wanted}'; allowed: AUTO, ON, OFF")
    found = None if wanted == "OFF" else os.environ.get("CUDACXX") or shutil.which("nvcc")
    if wanted == "ON" and found is None:
        raise FileNotFoundError(
            "LONGSPAN_CUDA=ON, but no nvcc was found; put it on the PATH, set CUDACXX to it, or use OFF"
        )
    return found


def _with_headers(requirements: list[str]) -> list[str]:
    torch = [] if find_torch_root() else [TORCH_REQUIREMENT]
    return [*requirements, *torch, *([CUTLASS_REQUIREMENT] if cuda_compiler() else [])]


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return _with_headers(_requires_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return _with_headers(_requires_editable(config_settings))
