"""One training run in a process of its own, so that memory and warm-up of one run never reach another.

`python -m bench.process RECIPE.yaml OUT.json [--stock] [--evaluate N]` trains and writes the figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from longspan.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Run:
    """The figures of one run: seconds of each optimizer step, largest resident set in bytes while training."""

    name: str
    steps: int
    tokens_per_step: int
    seconds: list[float]
    losses: list[float]
    peak_memory: int
    trainable: int
    held_out_before: float | None
    held_out_after: float | None
    output: str

    @property
    def seconds_per_step(self) -> float:
        """Median over the steps after the first, which warms up."""
        return statistics.median(self.seconds[1:] or self.seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.seconds_per_step


def train_apart(name: str, recipe: Recipe, *, stock: bool = False, evaluate: int = 0) -> Run:
    """Trains in a new process; its progress shows on standard error. Raises RuntimeError when the process fails."""
    folder = Path(recipe.trainer.output)
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer = folder / "asked.yaml", folder / "figures.json"
    asked.write_text(recipe.to_yaml(), encoding="utf-8")
    answer.unlink(missing_ok=True)
    command = [sys.executable, "-m", "bench.process", str(asked), str(answer), "--evaluate", str(evaluate)]
    code = subprocess.run([*command, *(["--stock"] if stock else [])], check=False).returncode
    if code or not answer.exists():
        raise RuntimeError(f"the run '{name}' ended with exit code {code}; its output is above")
    return Run(name=name, **json.loads(answer.read_text(encoding="utf-8")))


def _figures(recipe: Recipe, *, stock: bool, evaluate: int) -> dict[str, Any]:
    from longspan.train.run import log_of, train

    result = train(recipe, evaluate=evaluate or False, overwrite=True, patched=not stock)
    tokens = log_of(result.output)[-1]["tokens"]
    return {
        "steps": result.steps,
        "tokens_per_step": tokens // result.steps,
        "seconds": result.seconds,
        "losses": result.losses,
        "peak_memory": result.peak_memory,
        "trainable": result.trainable,
        "held_out_before": result.held_out_before,
        "held_out_after": result.held_out_after,
        "output": str(result.output),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--stock", action="store_true", help="the unpatched Hugging Face model")
    parser.add_argument("--evaluate", type=int, default=0, help="held-out rows to score before and after")
    arguments = parser.parse_args()
    figures = _figures(Recipe.from_yaml(arguments.recipe), stock=arguments.stock, evaluate=arguments.evaluate)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
