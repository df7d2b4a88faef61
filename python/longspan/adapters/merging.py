"""Fold an adapter into the weights of its model."""

from __future__ import annotations

from typing import Any

from longspan.adapters.attaching import TRAINED
from longspan.adapters.files import base_of


def merge(model: Any) -> Any:
    """The plain transformers model that scores as ``model`` does: every adapted weight becomes W + (alpha /
    rank) B A.

    The adapter is gone afterwards; trained embeddings and norms are the model's own already. Raises
    ``ValueError`` for a model without adapter, and for weights that are not finite.
    """
    base = base_of(model, "merge")
    merged = model.merge_and_unload(safe_merge=True)
    if TRAINED in base.__dict__:
        delattr(base, TRAINED)
    return merged
