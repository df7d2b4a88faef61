"""Product-quantised attention and the routed feed-forward on the real model.

SmolLM2-135M with LoRA r=8 on q, k, v, o in float32, on the Python documentation and standard library. Parts:

  mass       attention mass that every selector keeps of held-out text, by layer
  first      training loss of the first step by selector, against dense
  mask       form mask: seconds of forward and backward against the dense engine, bytes saved
  block      form block at 16384 tokens against the dense engine and torch's SDPA
  list       form list by density
  ffn        the routed feed-forward branch against the dense lean one, two sizes
  paper      one block of the paper's size: full tuning, LoRA, SPT
  steps      seconds of a training step at 2048 tokens, all competitors in turn
  quality    held-out loss after the same 60 steps at 2048 tokens, dense and sparse evaluation

`python -m bench.spt [PART ...]` writes to bench/records/spt.json; quality goes on where it stopped.
"""

from __future__ import annotations

import statistics
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from bench import spt_attention, spt_ffn, spt_mass, spt_paper
from bench.lean_layers import BASELINE, adapted, interleaved, rows
from bench.parts import LENGTH, PartsFile, Setup, loss_of, main, recipe_of, train_all, train_one
from longspan.recipe import Recipe

FILE = PartsFile("spt")
DENSE = "longspan, dense"
PQ = {"method": "pq"}
ROUTED = {"method": "routed", "blocks": 4, "active": 2}


def setups() -> dict[str, Setup]:
    """What is trained and compared."""
    ffn = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    wide = {"adapter": {"method": "lora", "rank": 8, "alpha": 16, "targets": list(ffn)}}

    def routed(**changes: Any) -> Setup:
        return {"ffn": {"train": ROUTED | changes}} | wide

    return {
        DENSE: {},
        "dense, adapters in the feed-forward": wide,
        "pq, adc, mask": {"attention": {"train": PQ}},
        "pq, adc, block": {"attention": {"train": PQ | {"form": "block"}}},
        "pq, match (SPT)": {"attention": {"train": PQ | {"scorer": "match", "sinks": 0, "window": 0.0}}},
        "routed, calibrated": routed(),
        "routed, random router": routed(calibrate=False),
        "routed, calibrated, ramp": routed(ramp_steps=40),
        "routed, 3 of 4": routed(active=3),
        "pq, adc, mask + routed": {"attention": {"train": PQ}} | routed(),
        "pq, adc, mask + routed, ramp": {"attention": {"train": PQ}} | routed(ramp_steps=40),
    }


def one_quality(setup: Setup) -> dict[str, Any]:
    """Training, and the loss with the same sparsity in evaluation."""

    def sparse(result: Any) -> dict[str, Any]:
        changes: Setup = {}
        if "attention" in setup:
            changes["attention.prefill"] = Recipe.model_validate(recipe_of(setup)).attention.train.model_dump()
        if "ffn" in setup:
            changes["ffn.eval"] = "routed"
        return {"held_out_sparse": loss_of(setup, result.final, changes)} if changes else {}

    return train_one(setup, sparse, before=FILE.untrained())


def steps(rounds: int) -> dict[str, Any]:
    """Wall and CPU seconds of a step, interleaved; ratios to the dense model with adapters at the same places."""
    ids = rows(LENGTH, rounds + 1)
    names = {
        BASELINE: None,
        DENSE: {},
        "pq, adc, mask": {"attention": {"train": PQ}},
        "pq, adc, block": {"attention": {"train": PQ | {"form": "block"}}},
        "routed": {"ffn": {"train": ROUTED}},
        "pq, adc, mask + routed": {"attention": {"train": PQ}, "ffn": {"train": ROUTED}},
        "pq, adc, block + routed": {"attention": {"train": PQ | {"form": "block"}}, "ffn": {"train": ROUTED}},
    }
    models = {
        name: adapted(None if setup is None else {"data": {"length": LENGTH}} | setup) for name, setup in names.items()
    }
    wall, cpu, losses = interleaved(models, ids)
    return {
        "length": LENGTH,
        "rounds": rounds,
        "competitors": {
            name: {
                "seconds": statistics.median(wall[name]),
                "cpu_seconds": statistics.median(cpu[name]),
                "faster_than_dense": statistics.median(d / s for d, s in zip(wall[DENSE], wall[name], strict=True)),
                "first_loss": losses[name],
            }
            for name in names
        },
    }


def parts(arguments: Namespace) -> dict[str, Callable[[], Any]]:
    """By name."""
    rounds = arguments.rounds
    return {
        "mass": spt_mass.mass,
        "first": spt_mass.first_loss,
        "mask": lambda: spt_attention.mask(rounds),
        "block": lambda: spt_attention.block(rounds),
        "list": lambda: spt_attention.lists(rounds),
        "ffn": lambda: spt_ffn.ffn(rounds),
        "paper": lambda: spt_paper.paper(rounds),
        "steps": lambda: steps(rounds),
        "quality": lambda: train_all(
            FILE, setups(), arguments.only, arguments.without, lambda name, setup: one_quality(setup)
        ),
    }


if __name__ == "__main__":
    main(FILE, __doc__, parts)
