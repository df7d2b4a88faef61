"""What a recipe's product-quantised attention and routed feed-forward do to a text, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.analysis.layers import run
from longspan.analysis.pairs import Kept, mask_of_blocks, mask_of_lists, probing
from longspan.attention import PQAttention
from longspan.attention.pq import BLOCK
from longspan.ffn import RoutedFeedForward
from longspan.patch.backend import Call
from longspan.patch.install import causal_model
from longspan.patch.layers import STATE
from longspan.patch.pq import BOOK, PQAttend
from longspan.recipe import Recipe


@dataclass
class LayerFigures:
    """kept: what attention keeps. entropy: evenness of the use of codewords, 0 to 1. load: rows of the blocks by the
    mean of all blocks, largest first. None for a method that the recipe does not use.
    """

    kept: Kept | None = None
    entropy: float | None = None
    load: list[float] | None = field(default=None)


def inspected(recipe: Recipe) -> Recipe:
    """The recipe that a model is prepared with to be looked at: routed where it is, all tokens in every layer.

    Raises ValueError where neither method is used.
    """
    methods = recipe.attention.train, recipe.ffn.train
    if not isinstance(methods[0], PQAttention) and not isinstance(methods[1], RoutedFeedForward):
        raise ValueError("neither attention.train is pq nor ffn.train routed; there is nothing to inspect")
    evaluated = "routed" if isinstance(methods[1], RoutedFeedForward) else "dense"
    return recipe.replace({"tokens": {"method": "none"}, "ffn.eval": evaluated, "memory.recompute": "none"})


def selected(asked: PQAttend, module: nn.Module, q: Tensor, k: Tensor, call: Call) -> Tensor:
    """The keys that a module's codebook and a method keep: bool [H,T,S]."""
    book = getattr(module, BOOK)
    codes = [book.encode(side) for side in ([k] if asked.config.scorer == "adc" else [q, k])]
    if asked.config.form == "block":
        table = asked.blocks(q, book, codes, call).tile_table
        assert table is not None
        return mask_of_blocks(table, q.shape[2], k.shape[2], q.shape[1], BLOCK)
    return mask_of_lists(asked.lists(q, book, codes, call), k.shape[2])


@torch.no_grad()
def inspect(model: Any, recipe: Recipe, row: Any) -> dict[int, LayerFigures]:
    """The figures of every layer of a patched model for one row of data; the model is evaluated."""
    base = causal_model(model.eval())
    layers = {path: LayerFigures() for path, _ in _layers(base)}
    books: dict[str, Tensor] = {}
    selectors = {}
    method = recipe.attention.train
    if isinstance(method, PQAttention):
        asked = PQAttend.of(method, recipe.data.length, base.get_decoder().longspan_steps)
        selectors = {"kept": partial(_selected_and_coded, asked, books)}
    for path, layer in _layers(base):
        state = getattr(layer, STATE, None)
        if state is not None and state.route is not None:
            state.route.watch = partial(_see_load, layers[path])
    try:
        with probing(base, selectors) as probes:
            run(model, row)
    finally:
        for _, layer in _layers(base):
            state = getattr(layer, STATE, None)
            if state is not None and state.route is not None:
                state.route.watch = None
    for path, probe in probes.items():
        figures = next(one for name, one in layers.items() if path.startswith(f"{name}."))
        if probe.found:
            figures.kept, figures.entropy = probe.found["kept"][0], float(books[path].mean())
    return dict(enumerate(layers.values()))


def _selected_and_coded(
    asked: PQAttend, books: dict[str, Tensor], module: nn.Module, q: Tensor, k: Tensor, call: Call
) -> Tensor:
    book = getattr(module, BOOK)
    books[call.path] = book.entropy(book.encode(k))
    return selected(asked, module, q, k, call)


def _see_load(figures: LayerFigures, plan: ops.RoutePlan) -> None:
    counts = plan.counts.double()
    figures.load = sorted((counts / counts.mean().clamp(min=1)).tolist(), reverse=True)


def _layers(base: Any) -> list[tuple[str, nn.Module]]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [(path, one) for path, one in base.named_modules() if isinstance(one, GradientCheckpointingLayer)]


def draw(figures: dict[int, LayerFigures], path: Path, title: str) -> None:
    """Curves over the layers as PNG. Raises ValueError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError("the picture needs matplotlib; pip install longspan[demo]") from None
    curves: dict[str, list[float]] = {}
    for layer in figures.values():
        found: dict[str, float] = {}
        if layer.kept is not None and layer.entropy is not None:
            found = {"attention kept": layer.kept.mass, "exact top-L": layer.kept.best, "recall": layer.kept.recall}
            found["codeword entropy"] = layer.entropy
        if layer.load is not None:
            found["largest block's load"] = layer.load[0]
        for name, value in found.items():
            curves.setdefault(name, []).append(value)
    figure = Figure(figsize=(8, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, values in curves.items():
        axes.plot(range(len(values)), values, marker="o", markersize=3, label=name)
    axes.set(title=title, xlabel="decoder layer", ylabel="share (load: of the mean)")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
