"""Builds the wheel once for the tests of this folder, from a copy of the sources, so that the checkout stays clean."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from tests.cuda import toolkit

SOURCES = ("CMakeLists.txt", "setup.py", "build_backend.py", "pyproject.toml", "README.md", "LICENSE", "csrc", "python")
_OURS = ("PYTHONPATH", "LONGSPAN_ISA", "LONGSPAN_TORCH_ROOT", "LONGSPAN_CUDA", "CUDACXX")


def clean_environment(**changes: str) -> dict[str, str]:
    """This environment without the variables that would change what is built or imported."""
    return {k: v for k, v in os.environ.items() if k not in _OURS} | changes


def copy_sources(root: Path, to: Path) -> Path:
    """The files that a source distribution has; no libraries, no build folders."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "*.egg-info")
    to.mkdir(parents=True)
    for name in SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, to / name, ignore=ignored)
        else:
            shutil.copy(root / name, to / name)
    return to


@dataclass(frozen=True)
class Built:
    """A wheel and what pip printed while it was built."""

    path: Path
    log: str


def build(root: Path, folder: Path) -> Built:
    """`pip wheel . --no-deps` with pip's default build isolation, by the nvcc of the machine or of this environment."""
    sources = copy_sources(root, folder / "sources")
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "-w", str(folder / "dist"), str(sources)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=2400,
        check=False,
        cwd=folder,
        env=clean_environment(LONGSPAN_CUDA="ON", CUDACXX=str(toolkit.require())),
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]
    (wheel,) = (folder / "dist").glob("*.whl")
    return Built(wheel, done.stdout + done.stderr)


def install(wheel: Path, folder: Path) -> Path:
    """A new environment that holds the wheel; returns its Python.

    torch and the other dependencies come from this test environment's site-packages through a .pth file, which saves a
    download of 200 MB; an editable longspan is not visible through it, because .pth files inside are not read.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=300)
    python = folder / "bin" / "python"
    where = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (folder / where / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    done = subprocess.run([*install, str(wheel)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return python
