"""Next-token losses at chosen positions, without logits for more than a slice of positions at a time."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch

# Logits of one slice of positions stay below this many bytes (float32).
_SLICE_BYTES = 64 << 20


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module gets its own mode back. Draws no random numbers."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def takes(model: Any, argument: str) -> bool:
    """Whether the model's forward names ``argument``; an adapter's wrapper is looked through."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return argument in inspect.signature(inner.forward).parameters


class NextTokenLoss:
    """Losses of a causal language model; call inside `evaluating`.

    The backbone runs once per text and its output layer once per slice of positions. Whether head, scale
    and soft-cap reproduce the model's own logits is tried out on a few tokens; for a model where they do
    not, the whole model runs once per slice instead: slower, equally exact, equally lean. Raises
    ``ValueError`` for a model that computes logits of all positions or of none.
    """

    def __init__(self, model: Any) -> None:
        if not takes(model, "logits_to_keep"):
            raise ValueError(
                f"{type(model).__name__}.forward takes no logits_to_keep, so its logits cannot be "
                f"computed slice by slice"
            )
        self.model = model
        self.config = model.config.get_text_config()
        self.vocabulary = int(model.get_input_embeddings().weight.shape[0])
        self.slice = max(16, _SLICE_BYTES // (4 * self.vocabulary))
        self._none = torch.zeros(0, dtype=torch.long, device=model.device)
        self.splits = self._head_reproduces_logits()

    def _hidden(self, ids: torch.Tensor) -> torch.Tensor:
        """The backbone's output [1, T, C]."""
        caught: list[torch.Tensor] = []

        def catch(module: Any, given: Any, output: Any) -> None:
            caught.append(output[0] if isinstance(output, tuple) else output.last_hidden_state)

        handle = self.model.get_decoder().register_forward_hook(catch)
        try:
            self.model(input_ids=ids, use_cache=False, logits_to_keep=self._none)
        finally:
            handle.remove()
        return caught[-1]

    def _head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] in float32 from hidden [N, C]."""
        logits = self.model.get_output_embeddings()(hidden).float()
        scale = getattr(self.config, "logit_scale", None)
        if scale is not None:
            logits = logits * scale
        divisor = getattr(self.config, "logits_scaling", None)
        if divisor is not None:
            logits = logits / divisor
        cap = getattr(self.config, "final_logit_softcapping", None)
        if cap is not None:
            logits = torch.tanh(logits / cap) * cap
        return logits

    def _head_reproduces_logits(self) -> bool:
        ids = torch.arange(8, device=self.model.device)[None] % self.vocabulary
        want = self.model(input_ids=ids, use_cache=False).logits[0].float()
        got = self._head(self._hidden(ids)[0])
        return got.shape == want.shape and bool(torch.allclose(got, want, rtol=1e-3, atol=1e-4 * want.abs().max()))

    def sum(self, ids: torch.Tensor, first: int) -> float:
        """Sum of -log p(ids[t] | ids[:t]) for t from ``first`` (>= 1) to the end; ids int64 [T]."""
        if not 1 <= first < len(ids):
            raise ValueError(f"the first target must be from 1 to {len(ids) - 1}, not {first}")
        given = ids[None]
        try:
            hidden = self._hidden(given)[0] if self.splits else None
            total = 0.0
            for start in range(first, len(ids), self.slice):
                stop = min(start + self.slice, len(ids))
                if hidden is not None:
                    logits = self._head(hidden[start - 1 : stop - 1])
                else:
                    positions = torch.arange(start - 1, stop - 1, device=ids.device)
                    logits = self.model(input_ids=given, use_cache=False, logits_to_keep=positions).logits[0].float()
                losses = torch.nn.functional.cross_entropy(logits, ids[start:stop], reduction="none")
                total += float(losses.double().sum())
        except IndexError as error:
            raise ValueError(
                f"the model cannot read {len(ids)} tokens: its positions are learned and end at "
                f"{self.config.max_position_embeddings} ({error})"
            ) from error
        return total
