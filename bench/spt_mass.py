"""How much attention mass every selector keeps of held-out text, by layer, on the real model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from longspan.analysis import layers, pairs
from longspan.analysis.pairs import Selector, mask_of_blocks, mask_of_lists, visible, weights_of
from longspan.attention import PQAttention
from longspan.nn.codebook import Codebook
from longspan.patch.backend import Call
from longspan.patch.pq import PQAttend
from longspan.patch.steps import Steps
from longspan.recipe import Recipe
from longspan.train.run import prepare

LENGTH, RATIO, BLOCK = 2048, 0.125, 64
BUDGET = int(LENGTH * RATIO)


@dataclass
class Books:
    """The codebooks of every layer and kind, found by k-means in the first text that it sees (or left at random)."""

    made: dict[tuple[str, str], Codebook] = field(default_factory=dict)

    def of(self, kind: str, q: Tensor, k: Tensor, call: Call) -> Codebook:
        """adc, adc M=16, adc E=256: of keys, a book a key head; match, match random: one of queries and keys."""
        place = call.path, kind
        if place not in self.made:
            torch.manual_seed(0)
            shared = kind.startswith("match")
            pieces, words = 16 if "M=16" in kind else None, 256 if "E=256" in kind else 16
            book = Codebook(1 if shared else k.shape[1], q.shape[3], pieces, words, 1 if shared else 2)
            if "random" in kind:
                nn.init.normal_(book.weight)
            else:
                book.fit(*([q, k] if shared else [k]))
            self.made[place] = book
        return self.made[place]


def _asked(**config: Any) -> PQAttend:
    return PQAttend.of(PQAttention(**config), LENGTH, Steps())


def quantised(books: Books, kind: str, config: dict[str, Any], module: Any, q: Tensor, k: Tensor, call: Call) -> Tensor:
    """What a method keeps with a kind of codebook."""
    asked, book = _asked(**config), books.of(kind, q, k, call)
    codes = [book.encode(x) for x in ([k] if asked.config.scorer == "adc" else [q, k])]
    if asked.config.form == "block":
        table = asked.blocks(q, book, codes, call).tile_table
        assert table is not None
        return mask_of_blocks(table, q.shape[2], k.shape[2], q.shape[1], BLOCK)
    return mask_of_lists(asked.lists(q, book, codes, call), k.shape[2])


def window(sinks: int, module: Any, q: Tensor, k: Tensor, call: Call) -> Tensor:
    """The last keys, and the first ones."""
    row, column = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
    near = (row - column < BUDGET - sinks) & (column <= row)
    return (near | (column < sinks)).expand(q.shape[1], -1, -1)


def exact(module: Any, q: Tensor, k: Tensor, call: Call) -> Tensor:
    """The keys with the largest weights."""
    seen, group = visible(q, k, call), q.shape[1] // k.shape[1]
    kept = []
    for head in range(q.shape[1]):
        best = weights_of(q[0, head], k[0, head // group], call, seen).topk(BUDGET, 1).indices
        kept.append(torch.zeros_like(seen).scatter_(1, best, True))
    return torch.stack(kept)


def oracle_blocks(module: Any, q: Tensor, k: Tensor, call: Call) -> Tensor:
    """The blocks with the most mass, summed over a block of queries and a key head's heads; always the diagonal."""
    seen, group, asked = visible(q, k, call), q.shape[1] // k.shape[1], _asked(form="block")
    tables = []
    for head in range(k.shape[1]):
        mass = torch.zeros(LENGTH // BLOCK, LENGTH // BLOCK)
        for one in range(head * group, (head + 1) * group):
            weights = weights_of(q[0, one], k[0, head], call, seen)
            mass += weights.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).sum((1, 3))
        mass += torch.diag(torch.full((LENGTH // BLOCK,), 1e9))
        values, best = mass.topk(asked.budget, 1)
        tables.append(torch.where(values > 0, best, -1))
    return mask_of_blocks(torch.stack(tables)[None].int(), LENGTH, LENGTH, q.shape[1], BLOCK)


def counted_blocks(books: Books, module: Any, q: Tensor, k: Tensor, call: Call) -> Tensor:
    """The blocks that hold the most of the keys that form mask would keep."""
    asked = _asked(form="block")
    kept = quantised(books, "adc", {"scorer": "adc"}, module, q, k, call).unflatten(0, (k.shape[1], -1))
    counts = kept.unflatten(2, (-1, BLOCK)).unflatten(4, (-1, BLOCK)).sum((1, 3, 5))
    counts += torch.diag(torch.full((LENGTH // BLOCK,), 1 << 40)) + torch.arange(LENGTH // BLOCK).lt(1) * (1 << 20)
    values, best = counts.topk(asked.budget, 2)
    return mask_of_blocks(torch.where(values > 0, best, -1)[None].int(), LENGTH, LENGTH, q.shape[1], BLOCK)


def selectors(books: Books) -> dict[str, Selector]:
    """The rows of the table, all of 1/8 of the keys (or blocks and the diagonal)."""
    found: dict[str, Selector] = {
        "exact top-L": exact,
        f"window of {BUDGET}": partial(window, 0),
        f"window of {BUDGET - 4} + 4 sinks": partial(window, 4),
    }
    plain = {"sinks": 0, "window": 0.0}
    for name, kind, config in (
        ("match, random codebook", "match random", {"scorer": "match"} | plain),
        ("match, k-means (SPT)", "match", {"scorer": "match"} | plain),
        ("match + window L/2 + 4 sinks", "match", {"scorer": "match", "window": 0.5}),
        ("match + window L/4 + 4 sinks", "match", {"scorer": "match"}),
        ("adc", "adc", plain),
        ("adc + window L/4 + 4 sinks (default)", "adc", {}),
        ("adc, 16 subspaces, + window + sinks", "adc M=16", {"subspaces": 16}),
        ("adc, 256 codewords, + window + sinks", "adc E=256", {"codewords": 256}),
        ("blocks by summed adc", "adc", {"form": "block"}),
        ("blocks by code histograms", "match", {"form": "block", "scorer": "match"}),
    ):
        found[name] = partial(quantised, books, kind, config)
    found["blocks by counted adc keys"] = partial(counted_blocks, books)
    found["blocks by exact mass"] = oracle_blocks
    return found


def mass(count: int = 2) -> dict[str, Any]:
    """Codewords from a training row; kept mass on `count` held-out rows, by selector and layer."""
    recipe = Recipe.model_validate(
        {"data": {"length": LENGTH, "packing": "none", "held_out": 0.05}, "adapter": {"method": "none"}}
    )
    model, tokenizer = prepare(recipe)
    model.eval()
    train, books = layers.rows_of(recipe, model, tokenizer), Books()
    some = selectors(books)
    rows = [row for row in layers.rows_of(recipe, model, tokenizer, held_out=True) if len(row["input_ids"]) == LENGTH]
    with torch.no_grad(), pairs.probing(model, some):
        layers.run(model, next(row for row in train if len(row["input_ids"]) == LENGTH))
    found: dict[str, dict[str, list[float]]] = {name: {} for name in some}
    with torch.no_grad(), pairs.probing(model, some) as probes:
        for row in rows[:count]:
            layers.run(model, row)
    for path, probe in probes.items():
        for name, kept in probe.found.items():
            found[name][path] = [
                sum(getattr(one, field_) for one in kept) / len(kept) for field_ in ("mass", "best", "recall")
            ]
    return {
        "length": LENGTH,
        "rows": count,
        "selectors": {name: _summary(by_layer) for name, by_layer in found.items()},
    }


def _summary(by_layer: dict[str, list[float]]) -> dict[str, Any]:
    columns = list(zip(*by_layer.values(), strict=True))
    means = [sum(column) / len(column) for column in columns]
    return {"mass": means[0], "of_exact": means[0] / means[1], "recall": means[2], "by_layer": list(columns[0])}


def first_loss() -> dict[str, Any]:
    """The training loss of the first step, without any training, by selector in all layers."""
    from bench.lean_layers import adapted, rows

    ids, found = rows(LENGTH, 4), {}
    ways: dict[str, Callable[[], dict[str, Any]]] = {
        "dense": lambda: {"method": "full"},
        "adc + window + sinks (default)": lambda: {"method": "pq"},
        "adc": lambda: {"method": "pq", "sinks": 0, "window": 0.0},
        "match (SPT)": lambda: {"method": "pq", "scorer": "match", "sinks": 0, "window": 0.0},
        "match + window + sinks": lambda: {"method": "pq", "scorer": "match"},
        "block, summed adc": lambda: {"method": "pq", "form": "block"},
        "block, code histograms": lambda: {"method": "pq", "form": "block", "scorer": "match"},
        f"window of {BUDGET - 4} + 4 sinks": lambda: {"method": "window", "size": BUDGET - 4, "sinks": 4},
    }
    for name, config in ways.items():
        model = adapted({"data": {"length": LENGTH}, "attention": {"train": config()}})
        with torch.enable_grad():
            losses = [float(model(input_ids=one, labels=one, use_cache=False).loss.detach()) for one in ids]
        found[name] = sum(losses) / len(losses)
    return {
        "length": LENGTH,
        "rows": len(ids),
        "losses": found,
        "of_dense": {n: x / found["dense"] for n, x in found.items()},
    }
