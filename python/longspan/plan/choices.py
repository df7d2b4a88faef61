"""What other recipes would need: the same run with one choice changed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from longspan.plan.predict import Prediction, Subject, predict
from longspan.recipe.sections import OFFLOAD, RECOMPUTE
from longspan.recipe.sizes import gib


@dataclass(frozen=True)
class Choice:
    """One changed key, and what the run would need then; error says why it cannot run, and prediction is None."""

    name: str
    prediction: Prediction | None
    now: bool = False
    error: str | None = None


def choices(subject: Subject, now: Prediction | None = None) -> Iterator[Choice]:
    """The run as it is, then with another recompute, offload, pattern, token method, batch, and as plain Hugging Face.

    now: the prediction for the subject, where it is known already.
    """
    recipe = subject.recipe
    yield Choice("as the recipe says", now or predict(subject), now=True)
    for name in RECOMPUTE:
        if name != recipe.memory.recompute:
            yield _changed(subject, f"memory.recompute: {name}", {"memory.recompute": name})
    for name in OFFLOAD if subject.patched and subject.machine.device == "cuda" else ():
        if name != recipe.memory.offload:
            yield _changed(subject, f"memory.offload: {name}", {"memory.offload": name})
    for method in ("full", "s2", "pq") if subject.patched else ("full", "s2"):
        if method != recipe.attention.train.method:
            yield _changed(subject, f"attention.train: {method}", {"attention.train": {"method": method}})
    if subject.patched and recipe.ffn.train.method == "dense":
        yield _changed(subject, "ffn.train: routed", {"ffn.train": {"method": "routed"}})
    for method in ("none", "lemo") if subject.patched else ():
        if method != recipe.tokens.method:
            yield _changed(subject, f"tokens: {method}", {"tokens": {"method": method}})
    batch = recipe.trainer.batch
    for rows in (batch * 2, batch // 2):
        if rows >= 1:
            yield _changed(subject, f"trainer.batch: {rows}", {"trainer.batch": rows})
    if subject.patched:
        yield _changed(subject, "plain Hugging Face + PEFT", {}, patched=False)
        if recipe.memory.recompute != "layer":
            plain = {"memory.recompute": "layer"}
            yield _changed(subject, "Hugging Face, layer recomputed", plain, patched=False)


def _changed(subject: Subject, name: str, changes: dict[str, Any], *, patched: bool | None = None) -> Choice:
    try:
        return Choice(name, predict(subject.replace(changes, patched=patched)))
    except ValueError as error:
        return Choice(name, None, error=str(error))


def least_recompute(subject: Subject, budget: int) -> tuple[str, Prediction]:
    """The first of none, mlp, mlp+qkv, layer whose predicted peak is at most `budget` bytes.

    Raises ValueError naming the smallest prediction when none fits.
    """
    found: dict[str, Prediction] = {}
    for name in RECOMPUTE:
        found[name] = predict(subject.replace({"memory.recompute": name}))
        if found[name].peak <= budget:
            return name, found[name]
    name = min(found, key=lambda name: found[name].peak)
    raise ValueError(
        f"memory.recompute auto: no choice fits {gib(budget)}; the smallest is {name} with a predicted peak of "
        f"{gib(found[name].peak)}. Give a larger memory.budget, or a smaller data.length or trainer.batch "
        "(`longspan plan` finds the length that fits)"
    )
