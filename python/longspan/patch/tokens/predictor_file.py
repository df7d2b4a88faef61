"""Predictors and thresholds on disk: safetensors with their shape beside the weights, and JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from longspan import folders, ops

KEY = "longspan.predictor"


@dataclass(frozen=True)
class PredictorFile:
    """Predictors by layer. block: tokens a block; hidden, count: the model's width and its layers.

    about: how they were trained (corpus, steps, loss, recall by layer).
    """

    layers: dict[int, ops.PredictorWeights]
    block: int
    hidden: int
    count: int
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        from safetensors.torch import save

        tensors = {
            f"layers.{layer}.{i}": tensor.detach().cpu().contiguous()
            for layer, weights in self.layers.items()
            for i, tensor in enumerate(weights.tensors)
        }
        shape = {"block": self.block, "hidden": self.hidden, "count": self.count}
        path.parent.mkdir(parents=True, exist_ok=True)
        folders.write_file(path, save(tensors, {KEY: json.dumps(shape | {"about": self.about})}))


def read_predictor(path: Path) -> PredictorFile:
    """Raises ValueError for a file that is missing, damaged, or something else."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"tokens.predictor: {path} is no file; `longspan lemo train-predictor` writes one")
    try:
        with safe_open(path, "pt") as stream:
            metadata = stream.metadata() or {}
            tensors: dict[str, Tensor] = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"tokens.predictor: {path} cannot be read ({error}); train it again") from None
    if KEY not in metadata:
        raise ValueError(f"tokens.predictor: {path} is not of `longspan lemo train-predictor`")
    shape = json.loads(metadata[KEY])
    layers: dict[int, ops.PredictorWeights] = {}
    for layer in sorted({int(name.split(".")[1]) for name in tensors}):
        a, b, c, d, e, f = (tensors[f"layers.{layer}.{i}"] for i in range(6))
        layers[layer] = ops.PredictorWeights((a, b, c), (d, e, f))
        layers[layer].check(f"{path}, layer {layer}", shape["hidden"])
    return PredictorFile(layers, shape["block"], shape["hidden"], shape["count"], shape["about"])


@dataclass(frozen=True)
class Thresholds:
    """By layer, the share of the highest score that a block must reach; None leaves the layer dense.

    kept: the share of blocks that was kept while they were searched. block, count: tokens a block, the model's layers.
    """

    layers: dict[int, float | None]
    kept: dict[int, float]
    block: int
    count: int
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        folders.write_file(path, json.dumps(asdict(self), indent=1) + "\n")


def read_thresholds(path: Path) -> Thresholds:
    """Raises ValueError for a file that is missing or something else."""
    if not path.is_file():
        raise ValueError(f"tokens.thresholds: {path} is no file; `longspan lemo thresholds` writes one")
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
        layers = {int(layer): None if value is None else float(value) for layer, value in given["layers"].items()}
        kept = {int(layer): float(value) for layer, value in given["kept"].items()}
        return Thresholds(layers, kept, int(given["block"]), int(given["count"]), given.get("about", {}))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"tokens.thresholds: {path} is not of `longspan lemo thresholds` ({type(error).__name__}: {error})"
        ) from None
