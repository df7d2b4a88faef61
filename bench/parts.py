"""A method's figures on the real model: named parts of one record file, each measured by its own function."""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import longspan
from bench.record import RECORDS, environment

Setup = dict[str, Any]  # recipe keys beside those that all runs share
LENGTH, STEPS, HELD_OUT = 2048, 60, 16


@dataclass(frozen=True)
class PartsFile:
    """bench/records/<name>.json."""

    name: str

    @property
    def path(self) -> Path:
        """Where it lies."""
        return RECORDS / f"{self.name}.json"

    def read(self) -> dict[str, Any]:
        """As it lies on the disk: another part may have written since."""
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.is_file() else {}

    def save(self, part: str, result: Any) -> None:
        """Puts a part's figures into the record."""
        results = self.read() | {part: {"result": result, "environment": environment(torch.get_num_threads())}}
        self.path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    def runs(self) -> dict[str, Any]:
        """What `train_all` has recorded."""
        found: dict[str, Any] = self.read().get("quality", {}).get("result", {}).get("runs", {})
        return found

    def untrained(self) -> float | None:
        """The held-out loss before training, which all runs that train new adapters on one model share."""
        known: list[float] = [run["held_out_before"] for run in self.runs().values()]
        return known[0] if known else None


def recipe_of(setup: Setup) -> Setup:
    """The training that setups share: LoRA r=8 on q, k, v, o, AdamW, 60 rows of 2048 tokens, unless `setup` says."""
    return {
        "data": {"length": LENGTH, "packing": "none", "held_out": 0.05},
        "adapter": {"method": "lora", "rank": 8, "alpha": 16},
        "update": {"engine": {"method": "adamw", "lr": 5e-4}},
        "trainer": {"steps": STEPS},
    } | setup


def loss_of(setup: Setup, final: Path, changes: Setup | None = None) -> float:
    """Held-out loss of a run's weights, evaluated densely, or as `changes` of the recipe say."""
    from longspan import data
    from longspan.analysis.layers import rows_of
    from longspan.recipe import Recipe
    from longspan.train import weights
    from longspan.train.evaluate import held_out_loss
    from longspan.train.run import prepare

    recipe = Recipe.model_validate(recipe_of(setup)).replace(changes or {})
    model, tokenizer = prepare(recipe)
    weights.load(model, final, recipe)
    return held_out_loss(model, rows_of(recipe, model, tokenizer, held_out=True), data.collate, limit=HELD_OUT)


def train_one(
    setup: Setup, more: Callable[[Any], dict[str, Any]] = lambda result: {}, *, before: float | None = None
) -> dict[str, Any]:
    """Loss on held-out rows, evaluated densely, before and after training; its first and last losses and its time.

    more: further figures, of the run before its folder is gone. before: the loss before training where it is known.
    """
    recipe = recipe_of(setup)
    with tempfile.TemporaryDirectory() as folder:
        recipe["trainer"] = recipe["trainer"] | {"output": f"{folder}/run"}
        result = longspan.train(recipe, evaluate=HELD_OUT if before is None else False, progress=False)
        return {
            "held_out_before": result.held_out_before if before is None else before,
            "held_out_after": result.held_out_after if before is None else loss_of(setup, result.final),
            "first_loss": result.losses[0],
            "last_losses": sum(result.losses[-5:]) / 5,
            "seconds_a_step": statistics.median(result.seconds),
        } | more(result)


def train_all(
    file: PartsFile,
    setups: Mapping[str, Setup],
    only: str,
    without: str,
    one: Callable[[str, Setup], dict[str, Any]] = lambda name, setup: train_one(setup),
) -> dict[str, Any]:
    """Every setup that is not recorded yet; each is recorded when it is done."""

    def now() -> dict[str, Any]:
        return {"length": LENGTH, "steps": STEPS, "held_out_rows": HELD_OUT, "runs": file.runs()}

    for name, setup in setups.items():
        if name in file.runs() or only not in name or (without and without in name):
            continue
        figures = one(name, setup)
        print(name, figures, flush=True)
        found = now()
        found["runs"][name] = figures
        file.save("quality", found)
        gc.collect()
    return now()


def main(file: PartsFile, doc: str | None, parts: Callable[[argparse.Namespace], dict[str, Callable[[], Any]]]) -> None:
    """Command line: parts by name (default all), written to the record one by one."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="names of parts (default: all)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="of `quality`: setups whose name holds this")
    parser.add_argument("--without", default="", help="of `quality`: leave out setups whose name holds this")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    everything = parts(arguments)
    unknown = set(arguments.parts) - set(everything)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; allowed: {', '.join(everything)}")
    for name in arguments.parts or everything:
        figures = everything[name]()
        file.save(name, figures)
        print(json.dumps(figures, indent=1), flush=True)
