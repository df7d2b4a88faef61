"""Per instance, reversible surgery on a Hugging Face causal language model: attention and loss.

``patch(model, recipe)`` gives the model the attention engine and the segmented loss; the report that it
returns says what was replaced, what was left alone and why, and undoes it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from longspan.patch.install import patch, unpatch
from longspan.patch.report import PatchReport

if TYPE_CHECKING:
    from torch import nn

    from longspan.recipe import Recipe

__all__ = ["PatchReport", "patch", "unpatch"]


class _CallablePackage(ModuleType):
    """``longspan.patch(model, recipe)`` works whether or not the package was imported as a module before."""

    def __call__(self, model: nn.Module, recipe: Recipe | Mapping[str, Any]) -> PatchReport:
        return patch(model, recipe)


sys.modules[__name__].__class__ = _CallablePackage
