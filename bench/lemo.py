"""Token elimination on the real model against the fused dense layers and plain Hugging Face + PEFT.

SmolLM2-135M with LoRA r=8 on q, k, v, o in float32, on the Python documentation and standard library. Parts:

  kept       bytes that live between forward and backward, a token, and their share of the fused dense model's
  steps      seconds of a training step, all competitors in turn, medians of ratios of wall and of CPU time
  long       the same at 16384 tokens, dense against elimination alone
  layer      the halves of one layer alone, at the lengths of both: seconds of forward and backward, bytes kept
  quality    held-out loss, dense evaluation, after the same 60 steps at 2048 tokens, for modes, selectors and ratios
  recall     trains predictors, and measures them against exact scores

`python -m bench.lemo [PART ...]` writes to bench/records/lemo.json; quality goes on where it stopped. Parts without
a clock (quality, recall) can run beside each other, a thread each.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import lemo_layer
from bench.lean_layers import BASELINE, S2, adapted, alive, interleaved, rows
from bench.parts import PartsFile, Setup, main, train_all, train_one

FILE = PartsFile("lemo")
PREDICTOR = Path("runs/lemo/predictor.safetensors")
DENSE = "longspan, dense"


def lemo(**changes: Any) -> Setup:
    """A recipe's tokens section."""
    return {"tokens": {"method": "lemo", "keep_ratio": 0.4} | changes}


ELIMINATE = {"forward": "eliminate", "mlp": "dense", "selector": "predictor", "predictor": "untrained"}
COMPETITORS: dict[str, Setup | None] = {
    BASELINE: None,
    DENSE: {},
    "eliminate, predictor": lemo(**ELIMINATE),
    "eliminate, predictor, mlp rows": lemo(**(ELIMINATE | {"mlp": "rows"})),
    "eliminate, predictor, mlp skip": lemo(**(ELIMINATE | {"mlp": "skip"})),
    "dense forward, random, mlp rows": lemo(forward="dense", mlp="rows", selector="random"),
    "dense forward, gradient, mlp rows": lemo(forward="dense", mlp="rows", selector="gradient"),
    "S2": {"attention": {"train": S2}},
    "S2 + eliminate, predictor": {"attention": {"train": S2}} | lemo(**ELIMINATE),
    "S2 + dense forward, random, mlp rows": {"attention": {"train": S2}} | lemo(forward="dense", mlp="rows"),
}
ON_RECOMPUTE: dict[str, Setup] = {
    "longspan, dense, recompute mlp": {"memory": {"recompute": "mlp"}},
    "eliminate, predictor, recompute mlp": lemo(**ELIMINATE) | {"memory": {"recompute": "mlp"}},
    "eliminate, predictor, mlp rows, recompute mlp": lemo(**(ELIMINATE | {"mlp": "rows"}))
    | {"memory": {"recompute": "mlp"}},
    "dense forward, random, mlp rows, recompute mlp": lemo(forward="dense", mlp="rows")
    | {"memory": {"recompute": "mlp"}},
}


def build(setup: Setup | None, length: int) -> Any:
    """A competitor's model."""
    return adapted(None if setup is None else {"data": {"length": length}} | setup)


def kept(length: int = 1024) -> dict[str, Any]:
    """Live bytes a token after a forward."""
    ids = rows(length, 1)[0]
    found = {name: alive(build(setup, length), ids) for name, setup in (COMPETITORS | ON_RECOMPUTE).items()}
    for figures in found.values():
        figures["share_of_dense"] = figures["bytes_per_token"] / found[DENSE]["bytes_per_token"]
    return {"length": length, "competitors": found}


def steps(length: int, names: list[str], rounds: int) -> dict[str, Any]:
    """Wall and CPU seconds of a step, interleaved; ratios to the fused dense model and to the baseline."""
    ids = rows(length, rounds + 1)
    models = {name: build(COMPETITORS[name], length) for name in names}
    wall, cpu, losses = interleaved(models, ids)

    def ratio(seconds: dict[str, list[float]], name: str, other: str) -> float | None:
        if other not in seconds:
            return None
        return statistics.median(b / s for b, s in zip(seconds[other], seconds[name], strict=True))

    figures = {
        name: {
            "seconds": statistics.median(wall[name]),
            "cpu_seconds": statistics.median(cpu[name]),
            "faster_than_dense": ratio(wall, name, DENSE),
            "faster_than_dense_cpu": ratio(cpu, name, DENSE),
            "faster_than_baseline": ratio(wall, name, BASELINE),
            "first_loss": losses[name],
        }
        for name in names
    }
    return {"length": length, "rounds": rounds, "competitors": figures}


def recall(length: int = 2048, steps_: int = 450) -> dict[str, Any]:
    """Trains predictors of the demo model's later half, and measures them on held-out rows."""
    from longspan.analysis import predictors
    from longspan.analysis import recall as measuring
    from longspan.analysis.layers import bare, subject_of
    from longspan.recipe import Recipe
    from longspan.train.run import prepare

    recipe = Recipe.model_validate({"data": {"length": length, "packing": "none", "held_out": 0.05}} | lemo())
    subject = subject_of(recipe, *prepare(bare(recipe)))
    start, file = time.perf_counter(), None
    for found in predictors.train(subject, predictors.Settings(steps=steps_)):
        if isinstance(found, predictors.Progress):
            if found.step % 20 == 0:
                print(found, flush=True)
        else:
            file = found
    seconds = time.perf_counter() - start
    assert file is not None
    shares = measuring.mean_recall(subject, subject.rows(held_out=True), file, 16)
    file = replace(file, about=file.about | {"recall": shares})
    file.write(PREDICTOR)
    mean = sum(shares.values()) / len(shares)
    return {"length": length, "seconds": seconds, "recall": shares, "mean": mean, "about": file.about}


def quality_setups() -> dict[str, Setup]:
    """What is trained and compared, by name."""
    found: dict[str, Setup] = {"dense training": {}}
    trained = {"selector": "predictor", "predictor": str(PREDICTOR)}
    choices: dict[str, dict[str, Any]] = {
        "random": {"selector": "random"},
        "scores": {"selector": "scores"},
        "predictor": trained,
        "token_loss": {"selector": "token_loss"},
        "gradient": {"selector": "gradient"},
    }
    for ratio in (0.4, 0.2, 0.6):
        for name, choice in choices.items():
            found[f"forward dense, {name}, {ratio}"] = lemo(forward="dense", mlp="rows", keep_ratio=ratio, **choice)
    for layers, where in (("later-half", "later half"), (list(range(22, 29)), "last seven")):
        for ratio in (0.4, 0.7, 0.9):
            for name in ("scores", "predictor", "random", "last"):
                choice = {"selector": "random"} if name == "last" else choices[name]
                found[f"eliminate, {name}, {ratio}, {where}"] = lemo(
                    forward="eliminate", mlp="dense", keep_ratio=ratio, layers=layers, **choice
                )
    return found


def _last(layer: Any, tokens: Any, rows_: Tensor, stream: Any) -> Tensor:
    """Later blocks score higher."""
    return torch.arange(stream.blocks.cu_blocks[-1], dtype=torch.float32)


def one_quality(name: str, setup: Setup) -> dict[str, Any]:
    """One of `quality_setups`, whose "last" is a selector that the product does not have."""
    from longspan.patch.tokens import select

    before = select.BEFORE_SCORES["random"]
    if ", last, " in name:
        select.BEFORE_SCORES["random"] = _last
    try:
        return train_one(setup, before=FILE.untrained())
    finally:
        select.BEFORE_SCORES["random"] = before


def parts(arguments: Namespace) -> dict[str, Callable[[], Any]]:
    """By name."""
    rounds = arguments.rounds
    return {
        "kept": kept,
        "steps": lambda: steps(8192, list(COMPETITORS), rounds),
        "long": lambda: steps(16384, [DENSE, "eliminate, predictor"], max(1, rounds - 1)),
        "layer": lambda: [lemo_layer.timed(lemo(**ELIMINATE), length, rounds) for length in (8192, 16384)],
        "recall": recall,
        "quality": lambda: train_all(FILE, quality_setups(), arguments.only, arguments.without, one_quality),
    }


if __name__ == "__main__":
    main(FILE, __doc__, parts)
