"""Decoder layers by the names of their parameters."""

from __future__ import annotations

import re
from collections.abc import Iterable

# The number behind the list of decoder layers: model.layers.3.mlp, transformer.h.3.attn.
_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The decoder layer of a parameter by its name, None outside the layers."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def count_layers(names: Iterable[str]) -> int:
    """Decoder layers, by the names of parameters; at least 1."""
    return 1 + max((layer for layer in map(layer_of, names) if layer is not None), default=0)
