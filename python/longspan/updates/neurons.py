"""Which neurons a probe run turned most: scores, choice and files of neuron-level fine-tuning.

A neuron is a hidden unit's vector in one matrix: a row of up_proj, a column of down_proj; the two are chosen apart
(Xu et al. 2024, arXiv 2403.11621).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longspan.ops import UpdateMask

FAMILIES = {"up_proj": "rows", "down_proj": "columns", "gate_proj": "rows"}
DEFAULT = ("up_proj", "down_proj")


@dataclass(frozen=True)
class Neurons:
    """The chosen rows or columns of one matrix: mask uint8 [rows] or [columns]."""

    kind: str
    mask: Tensor

    def to(self, parameter: Tensor) -> UpdateMask:
        """The mask of an optimizer for this parameter. Raises ValueError where the shape does not fit."""
        needed = parameter.shape[0 if self.kind == "rows" else 1]
        if parameter.dim() != 2 or len(self.mask) != needed:
            raise ValueError(
                f"{len(self.mask)} {self.kind} are chosen of a parameter of shape {tuple(parameter.shape)}"
            )
        return UpdateMask(self.kind, self.mask.to(parameter.device))


def neuron_scores(
    base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], families: tuple[str, ...] = DEFAULT
) -> dict[str, Tensor]:
    """Cosine of each neuron's vector before and after a probe run, float64, by parameter name; state dicts.

    A positive factor on a vector does not change its score. Raises ValueError if no matrix of the families is there.
    """
    unknown = set(families) - set(FAMILIES)
    if unknown:
        raise ValueError(f"families are {families}; allowed: {', '.join(FAMILIES)}")
    scores = {}
    for name, before in base.items():
        family = name.split(".")[-2] if name.endswith(".weight") else ""
        if family in families:
            dim = 1 if FAMILIES[family] == "rows" else 0
            scores[name] = torch.cosine_similarity(before.double(), tuned[name].double(), dim=dim)
    if not scores:
        raise ValueError(f"no parameter belongs to {', '.join(families)}; neurons are found by these names")
    return scores


def choose_neurons(scores: Mapping[str, Tensor], count: int) -> dict[str, Neurons]:
    """The ``count`` neurons with the smallest cosines over all matrices jointly; of equal ones the first."""
    total = sum(len(each) for each in scores.values())
    if not 0 <= count <= total:
        raise ValueError(f"{count} neurons are asked for; there are {total}")
    order = torch.argsort(torch.cat(list(scores.values())), stable=True)
    kept = torch.zeros(total, dtype=torch.uint8)
    kept[order[:count]] = 1
    masks = kept.split([len(each) for each in scores.values()])
    return {name: Neurons(FAMILIES[name.split(".")[-2]], mask) for name, mask in zip(scores, masks, strict=True)}


def save_neurons(chosen: Mapping[str, Neurons], path: str | Path) -> None:
    """Writes a choice as safetensors; an existing file is replaced whole."""
    from safetensors.torch import save

    from longspan import folders

    tensors = {f"{name}|{each.kind}": each.mask.clone() for name, each in chosen.items()}
    folders.write_file(Path(path), save(tensors, {"format": "longspan neurons"}))


def load_neurons(path: str | Path) -> dict[str, Neurons]:
    """Reads what `save_neurons` wrote. Raises FileNotFoundError, and ValueError for another file."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no file of chosen neurons; longspan.updates.save_neurons writes one")
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("format") != "longspan neurons":
                raise ValueError(f"{path} is no file of chosen neurons; longspan.updates.save_neurons writes one")
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    return {key.rpartition("|")[0]: Neurons(key.rpartition("|")[2], mask) for key, mask in found.items()}
