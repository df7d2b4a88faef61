"""``patch(model, recipe)``: what to replace, in which order, and how to take it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from longspan.patch import attention, layers, loss, pq, steps
from longspan.patch.heads import SEGMENT
from longspan.patch.report import PatchReport
from longspan.recipe import Recipe
from longspan.recipe.sections import AUTO, RECOMPUTE

PATCHED = "_longspan_patch"


@dataclass
class _Done:
    attention: attention.AttentionPatch
    loss: bool = False


def patch(model: nn.Module, recipe: Recipe | Mapping[str, Any]) -> PatchReport:
    """Run this model's attention and training loss in longspan; nothing else in the process changes.

    ``model`` is a causal language model of transformers, bare or wrapped by PEFT; PEFT may also come
    afterwards. Training uses the pattern of ``recipe.attention.train``, evaluation and prompts ``prefill``,
    single tokens after a cache ``decode``. With labels in training the loss comes without logits, unless
    ``lean.loss`` is false or ``lean.keep_logits`` true.

    Raises ``ValueError``, leaving the model as it was, for a model that is patched already, one without
    weights loaded, and one that asks for what the engine does not serve.
    """
    recipe = Recipe.model_validate(recipe)
    base = causal_model(model)
    if PATCHED in base.__dict__:
        raise ValueError(
            f"this {type(base).__name__} is patched already; call undo() on the report of that patch first"
        )
    if any(parameter.is_meta for parameter in base.parameters()):
        raise ValueError(f"this {type(base).__name__} has parameters on the meta device; load its weights first")
    if recipe.memory.recompute == AUTO:
        raise ValueError(
            f"memory.recompute auto is settled before a run is patched (`longspan train` does it, and `longspan plan` "
            f"shows it); give one of {', '.join(RECOMPUTE)}"
        )
    attention.refuse(base)
    with_loss = recipe.lean.loss and not recipe.lean.keep_logits
    if with_loss:
        loss.refuse(base)
    report = PatchReport(type(base).__name__)
    done = _Done(attention.install(model, base, recipe))
    try:
        report.replaced |= done.attention.paths
        lean = layers.install(base, recipe)
        report.replaced |= lean.paths
        report.skipped |= lean.skipped
        if with_loss:
            loss.install(base)
            done.loss = True
            report.replaced["forward"] = f"loss: head and cross-entropy in segments of {SEGMENT} rows"
        else:
            setting = "lean.keep_logits is true" if recipe.lean.loss else "lean.loss is false"
            report.skipped["lean.loss"] = f"{setting} in the recipe: transformers computes the loss"
        pq.forget(base)
    except BaseException:
        layers.remove(base)
        attention.remove(model, done.attention)
        steps.remove(base)
        raise
    setattr(base, PATCHED, done)
    report._undo = partial(unpatch, model)
    return report


def unpatch(model: nn.Module) -> None:
    """Restore a patched model, or a copy of one, exactly; a model that is not patched is left alone."""
    base = causal_model(model)
    done: _Done | None = base.__dict__.get(PATCHED)
    if done is None:
        return
    delattr(base, PATCHED)
    if done.loss:
        loss.remove(base)
    layers.remove(base)
    attention.remove(model, done.attention)
    steps.remove(base)


def causal_model(model: nn.Module) -> Any:
    """The transformers model inside ``model``. Raises ``ValueError`` when there is none."""
    from transformers import PreTrainedModel

    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    if not isinstance(base, PreTrainedModel):
        raise ValueError(f"longspan.patch takes a causal language model of transformers, not {type(model).__name__}")
    if base.get_output_embeddings() is None:
        raise ValueError(
            f"{type(base).__name__} has no language-model head; give a causal language model (AutoModelForCausalLM)"
        )
    return base
