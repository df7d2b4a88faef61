"""What the build asks for and refuses: torch only when no headers are found, CUDA by name."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from tests.kernels.test_kernel_check import tool


@pytest.fixture
def backend(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The in-tree build backend; setuptools' own requirements are empty here."""
    spec = importlib.util.spec_from_file_location("build_backend", root / "build_backend.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("_requires_wheel", "_requires_editable"):
        monkeypatch.setattr(module, name, lambda settings=None: [])
    monkeypatch.delenv("LONGSPAN_TORCH_ROOT", raising=False)
    return module


def hide_torch(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name, *args: str(folder))
    monkeypatch.setattr(sys, "path", [str(folder)])


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_torch_is_asked_for_only_without_headers(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hook: str
) -> None:
    assert getattr(backend, hook)() == []
    hide_torch(monkeypatch, tmp_path)
    assert getattr(backend, hook)() == ["torch>=2.10"]
    named = tmp_path / "elsewhere" / "torch"
    (named / "include" / "torch" / "csrc" / "stable").mkdir(parents=True)
    monkeypatch.setenv("LONGSPAN_TORCH_ROOT", str(named))
    assert getattr(backend, hook)() == []
    assert backend.find_torch_root() == named


def test_an_old_torch_is_no_torch(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch" / "include" / "torch" / "csrc").mkdir(parents=True)
    hide_torch(monkeypatch, tmp_path)
    assert backend.get_requires_for_build_wheel() == ["torch>=2.10"]


def test_a_wrong_torch_root_is_named(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LONGSPAN_TORCH_ROOT", str(tmp_path / "typo"))
    with pytest.raises(FileNotFoundError, match=r"LONGSPAN_TORCH_ROOT is '.*typo', which has no include/torch"):
        backend.get_requires_for_build_wheel()


def configure(root: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    command = [tool("cmake"), "-G", "Ninja", ninja, "-S", str(root), "-B", str(folder), "-DLONGSPAN_HOST=OFF", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ON", "LONGSPAN_CUDA=ON, but this version has no CUDA kernels; use AUTO or OFF"),
        ("maybe", "LONGSPAN_CUDA is 'maybe'; allowed: AUTO, ON, OFF"),
    ],
)
def test_cuda_that_cannot_be_built_is_refused(root: Path, tmp_path: Path, value: str, message: str) -> None:
    done = configure(root, tmp_path, f"-DLONGSPAN_CUDA={value}")
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())


@pytest.mark.parametrize("value", ["AUTO", "OFF"])
def test_the_kernel_library_configures_alone(root: Path, tmp_path: Path, value: str) -> None:
    done = configure(root, tmp_path, f"-DLONGSPAN_CUDA={value}")
    assert done.returncode == 0, done.stderr
