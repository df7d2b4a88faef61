"""The recorded longer run: from 8192 to 16384 tokens by position interpolation and a short sparse training.

For each attention of `variants`: train the same rows for the same number of steps, then score with full attention the
perplexity by context length and the passkey accuracy. The stock model (dense, Hugging Face + PEFT) is asked for one
step at the same length under a limit on its memory, plain and with gradient checkpointing, to show whether it fits.
Each finished part is kept in the output folder, so an interrupted call goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.process import train_apart
from bench.record import RECORDS, environment
from longspan import data, eval, patch
from longspan.recipe import Recipe
from longspan.train.merge import merge
from longspan.train.model import load_model

RECIPE = Path(__file__).parents[1] / "recipes" / "long_context_16k.yaml"
S2 = {"method": "s2", "groups": 4}


def variants(length: int) -> dict[str, dict[str, Any]]:
    """Name -> attention in training; the window sees as many pairs as S2 with sinks, to within a per cent."""
    return {
        "S2": {**S2, "sinks": 0},
        "S2, 4 sinks": {**S2, "sinks": 4},
        "window, 4 sinks": {"method": "window", "size": window_of_equal_pairs(length), "sinks": 4},
    }


def window_of_equal_pairs(length: int, groups: int = 4) -> int:
    """The window w whose causal pairs T w - w (w - 1) / 2 equal S2's mean over shifted and unshifted heads.

    S2's pairs: LongLoRA, appendix (separate end groups), for groups of G = T / groups.
    """
    group = length // groups
    unshifted = groups * group * (group + 1) / 2
    shifted = (groups - 1) * group * (group + 1) / 2 + group / 2 * (group / 2 + 1)
    wanted = (unshifted + shifted) / 2
    low, high = 1, length
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if length * middle - middle * (middle - 1) / 2 < wanted else (low, middle)
    return low


def slug_of(name: str) -> str:
    return name.replace(", ", "_").replace(" ", "_").lower()


class Kept:
    """Results of finished parts, one JSON file each; raises ValueError where other settings were kept before."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        before = self.get("settings", lambda: settings)
        if before != settings:
            raise ValueError(
                f"{folder} keeps results of {before}, not of {settings}: remove it or name another --output"
            )

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.folder / f"{name}.json"
        if not path.exists():
            value = make()
            path.with_suffix(".part").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
            path.with_suffix(".part").replace(path)
        return json.loads(path.read_text(encoding="utf-8"))


def score(model: Any, tokenizer: Any, recipe: Recipe, arguments: argparse.Namespace) -> dict[str, Any]:
    """Perplexity on held-out documents by context length, and passkey accuracy by length; full attention."""
    patch(model.eval(), recipe)
    _, held_out = data.build(recipe.data, tokenizer, recipe.seed)
    whole = held_out.documents(at_least=recipe.data.length)[: arguments.documents]
    documents = [tokens[: recipe.data.length] for tokens in whole]
    lengths = [length for length in arguments.lengths if length <= recipe.data.length]
    perplexities = eval.perplexity(model, documents, lengths, stride=arguments.stride)
    passkeys = eval.passkey(model, tokenizer, lengths, trials=arguments.trials, seed=0)
    return {"perplexity": perplexities, "passkey": passkeys}


def stock_step(recipe: Recipe, limit: int) -> dict[str, Any]:
    """One stock training step with `limit` bytes of memory: whether it fits, and the end of what it said."""
    folder = Path(recipe.trainer.output)
    folder.mkdir(parents=True, exist_ok=True)
    asked, answer = folder / "asked.yaml", folder / "figures.json"
    asked.write_text(recipe.to_yaml(), encoding="utf-8")
    answer.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.process", str(asked), str(answer), "--stock"],
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    fits = done.returncode == 0 and answer.exists()
    figures = json.loads(answer.read_text(encoding="utf-8")) if fits else None
    said = (done.stderr or done.stdout).strip().splitlines()[-1:]
    return {"fits": fits, "limit_bytes": limit, "figures": figures, "said": said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--length", type=int, default=16384)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 2048, 4096, 8192, 12288, 16384])
    parser.add_argument("--documents", type=int, default=4, help="held-out documents of full length to score")
    parser.add_argument("--stride", type=int, help="of the scoring windows (default half of each length)")
    parser.add_argument("--trials", type=int, default=4, help="passkeys a length")
    parser.add_argument("--memory", type=float, default=22.0, help="GiB that the stock step may use")
    parser.add_argument("--output", type=Path, default=Path("runs/long_context"))
    arguments = parser.parse_args()
    console = Console()
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    kept = Kept(arguments.output / "parts", settings)
    size = {
        "trainer.steps": arguments.steps,
        "trainer.warmup": arguments.steps // 10,
        "data.length": arguments.length,
    }
    base = Recipe.from_yaml(RECIPE).replace(size)
    results: dict[str, Any] = {"settings": settings}

    def before() -> dict[str, Any]:
        model, tokenizer = load_model(base.model, base.dtype, positions=base.positions)
        return score(model, tokenizer, base, arguments)

    results["before training"] = {"scores": kept.get("before", before)}
    for name, method in variants(base.data.length).items():
        slug = slug_of(name)
        folder = arguments.output / slug
        recipe = base.replace({"attention.train": method, "trainer.output": str(folder)})
        console.print(f"[bold]{name}[/]: {arguments.steps} steps of {recipe.data.length} tokens", highlight=False)
        run = kept.get(f"{slug}_train", lambda name=name, recipe=recipe: vars(train_apart(name, recipe)))

        def after(folder: Path = folder) -> dict[str, Any]:
            model, tokenizer = load_model(str(merge(folder, folder / "merged", overwrite=True)), base.dtype)
            return score(model, tokenizer, base, arguments)

        results[name] = {"run": run, "scores": kept.get(f"{slug}_scores", after)}
    limit = int(arguments.memory * (1 << 30))
    for name, recompute in (("stock", "none"), ("stock, gradient checkpointing", "layer")):
        slug = slug_of(name)
        one_step = {"trainer.steps": 1, "trainer.warmup": 0, "memory.recompute": recompute}
        recipe = base.replace({**one_step, "trainer.output": str(arguments.output / slug)})
        results[name] = kept.get(slug, lambda recipe=recipe: stock_step(recipe, limit))
    results["environment"] = environment(torch.get_num_threads())
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    RECORDS.mkdir(parents=True, exist_ok=True)
    (RECORDS / "long_context.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    console.print(table(results, arguments.lengths))


def table(results: dict[str, Any], lengths: list[int]) -> str:
    """Perplexity and passkey accuracy by length as Markdown."""
    lines = [
        f"| attention in training | figure | {' | '.join(map(str, lengths))} |",
        "|---|---|" + "---|" * len(lengths),
    ]
    for name, part in results.items():
        if not isinstance(part, dict) or "scores" not in part:
            continue
        for figure in ("perplexity", "passkey"):
            cells = [_cell(part["scores"][figure], length) for length in lengths]
            lines.append(f"| {name} | {figure} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(scores: dict[str, Any], length: int) -> str:
    value = scores.get(str(length))
    if value is None:
        return ""
    return f"{value['ppl']:.3f}" if "ppl" in value else f"{value['accuracy']:.0%}"


if __name__ == "__main__":
    main()
