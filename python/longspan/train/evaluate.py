"""Loss on held-out rows with the attention of evaluation (full unless the recipe says otherwise)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from longspan.patch import heads
from longspan.patch.decoder import placed
from longspan.patch.install import causal_model


@torch.no_grad()
def held_out_loss(
    model: Any,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    *,
    limit: int | None = None,
) -> float:
    """Mean negative log-likelihood in nats over all labels of the first `limit` rows (all by default).

    The model, patched or not, is in evaluation mode meanwhile. Logits exist for a segment of rows at a time.
    Raises ValueError if the rows hold no label.
    """
    count = len(rows) if limit is None else min(limit, len(rows))
    was_training = model.training
    model.eval()
    total, scored = 0.0, 0
    try:
        for index in range(count):
            loss, labels = _row_loss(model, collate([rows[index]]))
            total += loss
            scored += labels
    finally:
        model.train(was_training)
    if not scored:
        raise ValueError("there is no held-out label to score; raise data.held_out or give a held-out file")
    return total / scored


def _row_loss(model: Any, batch: dict[str, Any]) -> tuple[float, int]:
    """Sum of the losses of one flattened batch, and the number of labels in it."""
    base = causal_model(model)
    batch = placed(batch, base.device)
    labels = nn.functional.pad(batch.pop("labels"), (0, 1), value=-100)[..., 1:]
    scored = int((labels != -100).sum())
    if not scored:
        return 0.0, 0
    seen: list[Tensor] = []

    def capture(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

    handle = base.get_decoder().register_forward_hook(capture)
    try:
        # The head runs on no rows; the loss below runs it on segments of the captured states.
        none = torch.zeros(0, dtype=torch.int64, device=base.device)
        model(**batch, use_cache=False, logits_to_keep=none)
    finally:
        handle.remove()
    transform = heads.transform_of(base.config)
    head = base.get_output_embeddings()
    loss = heads.head_loss(head, seen[-1], labels, transform, ignore_index=-100, num_items=1)
    return float(loss), scored
