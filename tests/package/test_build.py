"""What the build asks for and refuses: torch only when no headers are found, CUDA by name."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

from tests.kernels.test_kernel_check import tool
from tests.package.wheel import clean_environment


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
    monkeypatch.delenv("CUDACXX", raising=False)
    monkeypatch.setenv("LONGSPAN_CUDA", "OFF")
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


@pytest.mark.parametrize("hook", ["get_requires_for_build_wheel", "get_requires_for_build_editable"])
def test_cutlass_is_asked_for_only_by_cuda_builds(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hook: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for value in ("OFF", "AUTO"):
        monkeypatch.setenv("LONGSPAN_CUDA", value)
        assert getattr(backend, hook)() == []
    nvcc = tmp_path / "nvcc"
    nvcc.touch(mode=0o755)
    assert getattr(backend, hook)() == ["nvidia-cutlass>=4.2"]
    nvcc.unlink()
    monkeypatch.setenv("CUDACXX", str(tmp_path / "elsewhere" / "nvcc"))
    assert getattr(backend, hook)() == ["nvidia-cutlass>=4.2"]


def test_cuda_without_a_compiler_is_named(backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LONGSPAN_CUDA", "ON")
    with pytest.raises(FileNotFoundError, match="LONGSPAN_CUDA=ON, but no nvcc was found; put it on the PATH"):
        backend.get_requires_for_build_wheel()
    monkeypatch.setenv("LONGSPAN_CUDA", "maybe")
    with pytest.raises(ValueError, match="LONGSPAN_CUDA is 'maybe'; allowed: AUTO, ON, OFF"):
        backend.get_requires_for_build_wheel()


def configure(root: Path, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
    command = [tool("cmake"), "-G", "Ninja", ninja, "-S", str(root), "-B", str(folder), "-DLONGSPAN_HOST=OFF", *options]
    hidden = os.pathsep.join(
        folder for folder in os.environ["PATH"].split(os.pathsep) if not Path(folder, "nvcc").exists()
    )
    environment = clean_environment(PATH=hidden)
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("ON", "LONGSPAN_CUDA=ON, but no nvcc was found; put it on the PATH, set CUDACXX to it, or use OFF"),
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
