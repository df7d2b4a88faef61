"""The peak of a training step before anything is loaded."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from longspan.ops.scratch import Machine
from longspan.patch.layers import refuse_host
from longspan.plan.fake import build
from longspan.plan.ledger import GRADIENTS, HOST, INPUTS, OPTIMIZER, SCRATCH, TRANSIENT, WEIGHTS
from longspan.plan.parts import PARTS
from longspan.plan.step import MakeOptimizer, dry_run
from longspan.recipe import Recipe

# Depths from which deeper models are extrapolated: with fewer layers, the second and the last but one would coincide.
SHALLOW, DEEPER = 3, 4

ROWS = (WEIGHTS, GRADIENTS, OPTIMIZER, INPUTS, *PARTS, TRANSIENT, SCRATCH)


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is planned: a run's recipe, its model's config (transformers), how its optimizer is made, where it runs.

    patched: False is plain Hugging Face and PEFT, as `longspan.train(patched=False)`.
    """

    recipe: Recipe
    config: Any
    make_optimizer: MakeOptimizer
    machine: Machine
    patched: bool = True

    def replace(self, changes: Mapping[str, Any], *, patched: bool | None = None) -> Subject:
        """With other recipe keys (dotted); checked like any recipe."""
        patched = self.patched if patched is None else patched
        return dataclasses.replace(self, recipe=self.recipe.replace(changes), patched=patched)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The largest moment of a step: bytes in all, where it is, and bytes by part.

    parts: weights, gradients, optimizer and inputs; what is saved for the backward by part of the model; "transient"
    (what the step frees again: gradients of activations, recomputed and intermediate results) and "scratch" (inside the
    op that runs). segments: the peak of every stretch of the step. host: bytes that `memory.offload` keeps in host
    memory at most, not in `peak`.
    """

    peak: int
    segment: str
    parts: dict[str, int]
    segments: dict[str, int]
    host: int = 0

    @property
    def saved(self) -> int:
        """Bytes that the forward keeps for the backward."""
        return sum(self.parts.get(part, 0) for part in PARTS)


def predict(subject: Subject, *, extrapolate: bool = True) -> Prediction:
    """Dry-run one step, the optimiser's state included.

    A model of many equal layers is run with three and with four of them: segments' peaks are affine in their number.
    With a token method, layers differ and all of them are run.
    extrapolate: False runs all layers. Raises ValueError for a model that longspan does not serve.
    """
    if subject.patched and subject.recipe.memory.offload != "none":
        refuse_host(subject.machine.device)
    if not extrapolate or (subject.patched and subject.recipe.tokens.method != "none"):
        return _prediction(_run(subject, None)[0])
    moments, layers, held = _run(subject, DEEPER)
    if held == layers or held < DEEPER:
        return _prediction(moments)
    fewer, _, _ = _run(subject, SHALLOW)
    return _prediction(_extrapolated(_by_end(fewer, SHALLOW), _by_end(moments, DEEPER), layers))


def _run(subject: Subject, depth: int | None) -> tuple[dict[str, Counter[str]], int, int]:
    fake = build(subject.recipe, subject.config, patched=subject.patched, depth=depth)
    found = dry_run(fake, subject.recipe, subject.make_optimizer, subject.machine)
    return found, fake.layers, len(fake.decoder_layers)


def _prediction(moments: dict[str, Counter[str]]) -> Prediction:
    totals = {segment: sum(parts[name] for name in ROWS) for segment, parts in moments.items()}
    host = max(parts[HOST] for parts in moments.values())
    segment = max(totals, key=lambda name: totals[name])
    parts = moments[segment]
    return Prediction(totals[segment], segment, {name: parts[name] for name in ROWS}, totals, host)


def _by_end(moments: dict[str, Counter[str]], depth: int) -> dict[str, Counter[str]]:
    """Segments of layers named by their place from the nearer end.

    Between the second and the last but one, peaks are affine in the place: none of them is above both.
    """
    places = {0: ("first",), 1: ("second",), depth - 1: ("last",)}
    places[depth - 2] = (*places.get(depth - 2, ()), "last but one")
    found = {}
    for segment, parts in moments.items():
        name, _, place = segment.partition(" ")
        if not place:
            found[segment] = parts
            continue
        for end in places.get(int(place), ()):
            found[f"{name} of the {end} layer"] = parts
    return found


def _extrapolated(
    fewer: dict[str, Counter[str]], more: dict[str, Counter[str]], layers: int
) -> dict[str, Counter[str]]:
    steps = layers - DEEPER
    return {
        segment: Counter({part: parts[part] + steps * (parts[part] - fewer[segment][part]) for part in (*ROWS, HOST)})
        for segment, parts in more.items()
        if segment in fewer
    }
