"""The recipe: the whole configuration of a run. Importing it loads neither torch nor transformers."""

from __future__ import annotations

from longspan.recipe.errors import RecipeError
from longspan.recipe.schema import Recipe

__all__ = ["Recipe", "RecipeError"]
