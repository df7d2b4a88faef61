"""Data: sources, formats, packing, the token cache, and rows with exact document boundaries.

Importing this package is light; NumPy, torch and file readers load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longspan.data.build import build
    from longspan.data.collate import collate
    from longspan.data.rows import Rows

__all__ = ["Rows", "build", "collate"]

_HOME = {"build": "build", "collate": "collate", "Rows": "rows"}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        import importlib

        value = getattr(importlib.import_module(f"longspan.data.{_HOME[name]}"), name)
        globals()[name] = value  # the submodule of the same name must not hide the function
        return value
    raise AttributeError(f"module 'longspan.data' has no attribute {name!r}")
