"""A plan against a run: predicted live bytes, measured live bytes, and how much the process grew.

`python -m bench.memory_plan [--lengths 4096 16384]` trains the demo model for two steps a length, each in a process of
its own, and writes bench/records/memory_plan.json, where rows of other lengths stay. Live bytes are the allocator's;
growth is the largest resident set while training less that before the model was loaded. It is measured as a run with a
budget has it, which gives freed memory back at once, and as any other, where it also holds what glibc keeps in hand.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from bench.record import RECORDS, environment
from longspan import plan
from longspan.memory import measure
from longspan.plan.step import batch_of
from longspan.recipe import Recipe
from longspan.train import memory
from longspan.train.optimizer import build_optimizer
from longspan.train.planning import subject_of
from longspan.train.run import prepare

RECIPE = Path(__file__).parents[1] / "recipes" / "demo_s2.yaml"
STEPS = 2
LIVE, WITH_BUDGET, WITHOUT = FIGURES = ("live", "growth with a budget", "growth")


def recipe_of(length: int, recompute: str) -> Recipe:
    return Recipe.from_yaml(RECIPE).replace({"data.length": length, "memory.recompute": recompute})


def held(model: Any) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())


def run(length: int, recompute: str, what: str) -> int:
    """Live bytes, or the growth of the resident set, of two steps in this process."""
    if what == WITH_BUDGET:
        memory.return_freed()
    recipe = recipe_of(length, recompute)
    plan.predict(subject_of(recipe, device="cpu"))  # what it imports and keeps is not the run's
    memory.reset_peak()
    before = memory.peak_rss()
    model, _ = prepare(recipe)
    model.train()
    if recompute == "layer":
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = False
    batch = batch_of(recipe)

    def steps() -> None:
        optimizer = build_optimizer(recipe, model)
        for _ in range(STEPS):
            model(**batch, num_items_in_batch=(batch["labels"] != -100).sum())["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()

    memory.reset_peak()
    if what != LIVE:
        steps()
        return memory.peak_rss() - before
    weights = held(model)
    with measure() as m:
        steps()
    return weights + m.peak_bytes


def apart(length: int, recompute: str, what: str) -> int:
    command = [sys.executable, "-m", "bench.memory_plan", "--child", what, "--lengths", str(length)]
    done = subprocess.run([*command, "--recompute", recompute], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the run of {length} tokens ended with exit code {done.returncode}: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def kept_rows(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Those of the record that are not measured again."""
    if not arguments.output.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(arguments.output.read_text(encoding="utf-8"))["rows"]
    return [
        row for row in rows if row["length"] not in arguments.lengths or row["recompute"] not in arguments.recompute
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--recompute", nargs="+", default=["none", "mlp+qkv"])
    parser.add_argument("--child", choices=FIGURES, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RECORDS / "memory_plan.json")
    arguments = parser.parse_args()
    if arguments.child:
        print(run(arguments.lengths[0], arguments.recompute[0], arguments.child))
        return
    rows = kept_rows(arguments)
    table = Table(title=f"{RECIPE.stem}, {STEPS} steps", title_justify="left")
    for name in (
        "tokens",
        "recompute",
        "predicted",
        *FIGURES,
        *(f"predicted / {figure}" for figure in FIGURES),
    ):
        table.add_column(name, justify="right")
    for length in arguments.lengths:
        for recompute in arguments.recompute:
            predicted = plan.predict(subject_of(recipe_of(length, recompute), device="cpu")).peak
            measured = {what: apart(length, recompute, what) for what in FIGURES}
            rows.append(
                {
                    "length": length,
                    "recompute": recompute,
                    "predicted_bytes": predicted,
                    **{f"{what.replace(' ', '_')}_bytes": count for what, count in measured.items()},
                }
            )
            shown = [f"{count / 2**30:.3f} GiB" for count in (predicted, *measured.values())]
            ratios = [f"{predicted / count:.4f}" for count in measured.values()]
            table.add_row(str(length), recompute, *shown, *ratios)
            record = {"env": environment(torch.get_num_threads()), "recipe": RECIPE.stem, "steps": STEPS, "rows": rows}
            arguments.output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    Console().print(table)


if __name__ == "__main__":
    main()
