"""Training: `longspan.train(recipe)` runs one, and the modules below it are its parts.

The package itself can be called, so that both `longspan.train(recipe)` and `from longspan.train.merge import
merge` work: its module object is of a class with `__call__`, which Python supports for exactly this purpose.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from longspan.train.run import TrainResult, train

__all__ = ["TrainResult", "train"]


class _CallableModule(types.ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> TrainResult:
        """Same as `longspan.train.run.train`."""
        from longspan.train.run import train

        return train(*args, **kwargs)

    @property
    def __signature__(self) -> Any:
        import inspect

        from longspan.train.run import train

        return inspect.signature(train)


def __getattr__(name: str) -> Any:
    if name in __all__:
        from longspan.train import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


sys.modules[__name__].__class__ = _CallableModule
