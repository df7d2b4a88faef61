"""The wheel, built once a session, and the folder it unpacks to."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from tests.package.wheel import Built, build


@pytest.fixture(scope="session")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel of this checkout."""
    return build(root, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def unpacked(wheel: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's files."""
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel.path) as archive:
        archive.extractall(folder)
    return folder
