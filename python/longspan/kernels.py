"""Every kernel entry point on plain arrays, without torch: NumPy, torch, JAX, CuPy (DLPack or the buffer protocol).

>>> import numpy, longspan.kernels as kernels
>>> q = numpy.random.rand(1, 4, 128, 64).astype("float32")
>>> out, lse = kernels.attention_fwd(q, q, q, kernels.AttentionSpec("window", window=32), threads=2)
"""

from __future__ import annotations

from typing import Any

from longspan import _native


def __getattr__(name: str) -> Any:
    library = _native.host()
    if library.module is None:
        raise _native.MissingBackendError(f"longspan.kernels.{name}: the native library did not load: {library.reason}")
    try:
        return getattr(library.module, name)
    except AttributeError:
        raise AttributeError(f"longspan.kernels has no kernel '{name}'; it has: {', '.join(__dir__())}") from None


def __dir__() -> list[str]:
    module = _native.host().module
    return [] if module is None else sorted(n for n in vars(module) if not n.startswith("_"))
