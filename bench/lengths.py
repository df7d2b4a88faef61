"""Training steps from 1k to 64k tokens: every method, plain Hugging Face + PEFT, and combinations, in one table.

SmolLM2-135M with LoRA r=8 on q, k, v, o in float32, one row of the Python documentation and standard library. Parts:

  steps    seconds and largest resident set of a step, each way at each length in a process of its own that may allocate
           --memory GiB of private memory; longspan takes the least recomputation that `longspan plan` says fits
  longest  the longest rows of every way that fit that memory with the least memory it can have, by `longspan plan`

`python -m bench.lengths [PART ...]` writes to bench/records/lengths.json. `steps` goes on where it stopped; `--again`
measures anew. Lengths are run one after the other, all ways in turn, so that figures of one length compare.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

from bench.lean_layers import S2, adapted, one_step, rows
from bench.parts import PartsFile, Setup
from longspan import plan
from longspan.recipe import Recipe
from longspan.train.memory import peak_rss, reset_peak
from longspan.train.planning import subject_of

FILE = PartsFile("lengths")
LENGTHS = (1024, 4096, 8192, 16384, 32768, 65536)
PIECE = 4096  # longer rows than any document are real text, one after the other
WARM, THRICE = 1024, 4096  # tokens of the step that warms up; up to this length the median of three is taken
LEMO = {"method": "lemo", "keep_ratio": 0.4}
ELIMINATE = LEMO | {"forward": "eliminate", "mlp": "dense", "selector": "predictor", "predictor": "untrained"}
ROUTED = {"method": "routed", "blocks": 4, "active": 2, "calibrate": False}
PQ = {"method": "pq", "form": "block"}


@dataclass(frozen=True)
class Way:
    """A way to train: recipe keys; the stock model recomputes layers or nothing."""

    setup: Setup
    stock: bool = False


WAYS = {
    "Hugging Face + PEFT + SDPA": Way({}, stock=True),
    "Hugging Face + PEFT + SDPA, checkpointing": Way({"memory": {"recompute": "layer"}}, stock=True),
    "longspan, dense": Way({}),
    "window of 1024, 4 sinks": Way({"attention": {"train": {"method": "window", "size": 1024, "sinks": 4}}}),
    "S2": Way({"attention": {"train": S2}}),
    "LeMo, dense forward": Way({"tokens": LEMO | {"forward": "dense", "mlp": "rows", "selector": "random"}}),
    "LeMo, eliminate": Way({"tokens": ELIMINATE}),
    "SPT, codes in blocks": Way({"attention": {"train": PQ}}),
    "SPT, routed feed-forward": Way({"ffn": {"train": ROUTED}}),
    "SPT, both": Way({"attention": {"train": PQ}, "ffn": {"train": ROUTED}}),
    "S2 + LeMo, eliminate": Way({"attention": {"train": S2}, "tokens": ELIMINATE}),
}


def subject(way: Way, length: int) -> plan.Subject:
    """What `longspan plan` is asked."""
    recipe = Recipe.model_validate({"adapter": {"method": "lora", "rank": 8, "alpha": 16}} | way.setup)
    found = subject_of(recipe.replace({"data.length": length, "data.packing": "none"}), device="cpu")
    return found.replace({}, patched=not way.stock)


def recompute_of(way: Way, length: int, limit: int) -> str:
    """What the way computes again at this length: the stock model's own choice, or the least that fits."""
    if way.stock:
        return str(way.setup.get("memory", {}).get("recompute", "none"))
    return plan.least_recompute(subject(way, length), limit)[0]


def alone(name: str, length: int, limit: int) -> dict[str, Any]:
    """What a process of `steps` does."""
    way = WAYS[name]
    recompute = recompute_of(way, length, limit)
    asked = {"data": {"length": length}, "memory": {"recompute": recompute}} | way.setup
    model = adapted(None if way.stock else asked)
    if recompute == "layer":
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.cat(rows(min(length, PIECE), -(-length // PIECE)), 1)[:, :length]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    reset_peak()
    one_step(model, ids[:, :WARM])  # also what a first step makes, such as codebooks
    seconds = []
    for _ in range(3 if length <= THRICE else 1):
        start = time.perf_counter()
        loss = one_step(model, ids)
        seconds.append(time.perf_counter() - start)
    return {
        "recompute": recompute,
        "seconds": statistics.median(seconds),
        "peak_rss": peak_rss(),
        "loss": loss,
    }


def apart(name: str, length: int, limit: int) -> dict[str, Any]:
    """Figures of a way at a length, or what it said when it did not fit."""
    command = [sys.executable, "-m", "bench.lengths", "--one", name, "--lengths", str(length), "--limit", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        figures: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return {"fits": True} | figures
    return {"fits": False, "said": (done.stderr or done.stdout or "killed").strip().splitlines()[-1]}


def steps(arguments: argparse.Namespace) -> None:
    """Every cell that is not recorded yet; each is recorded when it is done."""
    for length in arguments.lengths:
        for name in WAYS:
            cells = FILE.read().get("steps", {}).get("result", {}).get("ways", {})
            if arguments.only not in name or (str(length) in cells.get(name, {}) and not arguments.again):
                continue
            found = apart(name, length, arguments.limit)
            print(name, length, found, flush=True)
            cells.setdefault(name, {})[str(length)] = found
            FILE.save("steps", {"limit_bytes": arguments.limit, "ways": cells})


def longest(arguments: argparse.Namespace) -> None:
    """Longest rows by the plan."""
    found = {}
    for name, way in WAYS.items():
        least = subject(way, PIECE) if way.stock else subject(way, PIECE).replace({"memory.recompute": "layer"})
        found[name] = {"tokens": plan.largest_length(least, arguments.limit)}
        print(name, found[name], flush=True)
    FILE.save("longest", {"limit_bytes": arguments.limit, "ways": found})


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everything = {"steps": steps, "longest": longest}
    parser.add_argument("parts", nargs="*", help=f"{', '.join(everything)} (default: all)")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--only", default="", help="ways whose name holds this")
    parser.add_argument("--again", action="store_true", help="measure what is recorded already")
    parser.add_argument("--memory", type=float, default=22.0, help="GiB that a process may use")
    parser.add_argument("--one", choices=list(WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.limit = arguments.limit or int(arguments.memory * 2**30)
    torch.set_num_threads(2)
    if arguments.one:
        print(json.dumps(alone(arguments.one, arguments.lengths[0], arguments.limit)))
        return
    unknown = set(arguments.parts) - set(everything)
    if unknown:
        parser.error(f"unknown part {', '.join(sorted(unknown))}; allowed: {', '.join(everything)}")
    for part in arguments.parts or everything:
        everything[part](arguments)


if __name__ == "__main__":
    main()
