"""Loads the native libraries and keeps the reason when one does not load. Importing never fails."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).parent


class MissingBackendError(RuntimeError):
    """A kernel was called whose library could not be loaded or that has no kernel for the device."""


@dataclass(frozen=True)
class Library:
    """A native library: where it is, and why it did not load (None when it did)."""

    name: str
    path: Path | None
    reason: str | None
    module: ModuleType | None = None


def _cause(error: BaseException) -> str:
    # torch.ops.load_library hides the linker's words in __cause__.
    words = [str(e) for e in (error, error.__cause__) if e is not None]
    return "; ".join(words)


@functools.cache
def ops() -> Library:
    """The torch ops (`_ops.so`), loaded on first use."""
    path = PACKAGE / "_ops.so"
    if not path.exists():
        return Library("_ops", None, f"{path.name} is not in the installed package; build it with `pip install .`")
    try:
        import torch

        torch.ops.load_library(str(path))
    except (OSError, RuntimeError, ImportError) as error:
        return Library("_ops", path, _cause(error))
    return Library("_ops", path, None)


@functools.cache
def host() -> Library:
    """The pybind11 module (`longspan._host`), loaded on first use."""
    try:
        module = importlib.import_module("longspan._host")
    except ImportError as error:
        return Library("_host", None, _cause(error))
    return Library("_host", Path(str(module.__file__)), None, module)


def require_op(name: str, device: str) -> None:
    """Raises MissingBackendError with the loader's reason unless op `name` has a kernel for `device`."""
    library = ops()
    if library.reason is not None:
        raise MissingBackendError(f"longspan::{name}: the native library did not load: {library.reason}")
    if not has_kernel(name, device):
        raise MissingBackendError(
            f"longspan::{name} has no kernel for device '{device}' in this build; available: "
            f"{', '.join(backends(name)) or 'none'}. Move the tensors there; `longspan report` lists what was built"
        )


KEYS = {"cpu": "CPU", "cuda": "CUDA", "meta": "Meta"}


@functools.cache
def has_kernel(name: str, device: str) -> bool:
    """Whether op `name` has a kernel of ours for the device type."""
    import torch

    key = KEYS.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(f"longspan::{name}", key)


def built_with_cuda() -> bool:
    """Whether the libraries were built with CUDA kernels; a GPU need not be there."""
    library = host()
    return library.module is not None and bool(library.module.built_with_cuda)


def backends(name: str) -> list[str]:
    """The device types for which op `name` has a kernel."""
    return [device for device in ("cpu", "cuda") if has_kernel(name, device)] if ops().reason is None else []
