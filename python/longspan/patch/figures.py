"""What a run logs of the methods of a patched model."""

from __future__ import annotations

from typing import Any

from longspan.patch import steps
from longspan.patch.side_loss import figures
from longspan.patch.tokens import state as tokens


def figures_of(model: Any) -> dict[str, float]:
    """`mlp_kept_norm` of tokens.mlp cols; `codebook_loss` of attention pq; `balance_loss`, `block_load` of ffn routed.

    Each is the mean of the layers that have it; block_load is the largest block's rows by the mean of all.
    """
    counter = steps.steps_of(model.get_decoder())
    return tokens.figures(model) | ({} if counter is None else figures(counter.losses))
