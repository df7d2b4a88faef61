"""Finding the CUDA toolkit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuda import toolkit


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """No test sees what another one found."""
    toolkit.nvcc.cache_clear()
    toolkit.include_dirs.cache_clear()
    yield
    toolkit.nvcc.cache_clear()
    toolkit.include_dirs.cache_clear()


def test_headers_of_the_toolkit_are_found() -> None:
    folders = toolkit.include_dirs()
    assert any((folder / "cuda_bf16.h").is_file() for folder in folders)
    assert any((folder / "cuda" / "std" / "cstdint").is_file() for folder in folders)


def test_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake(tmp_path / "path" / "nvcc")
    _fake(tmp_path / "wheels" / "bin" / "nvcc")
    monkeypatch.setattr(toolkit, "wheel_root", lambda: tmp_path / "wheels")
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    assert toolkit.nvcc() == tmp_path / "path" / "nvcc"
    toolkit.nvcc.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert toolkit.require() == tmp_path / "wheels" / "bin" / "nvcc"


def test_no_toolkit_is_an_error_that_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "wheel_root", lambda: tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert toolkit.nvcc() is None
    with pytest.raises(toolkit.MissingToolkit, match="pip install --no-deps 'nvidia-cuda-nvcc=="):
        toolkit.require()


def _fake(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
