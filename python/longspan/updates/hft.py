"""Half Fine-Tuning (Hui et al. 2024, arXiv 2404.18466): a random half of the matrices of a stage trains."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from longspan.registry import Bool, Int, register
from longspan.updates.base import UpdateTransform
from longspan.updates.layers import layer_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

LARGE, SMALL = ("q_proj", "o_proj"), ("k_proj", "v_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


@register("update_transform", "hft")
class HalfFineTuning(UpdateTransform):
    """In each layer half of the attention's and of the feed-forward's matrices train; the others stay bit for bit.

    Of the attention one of q and o and one of k and v, so that the halves are equal with shared key/value heads too; of
    a gated feed-forward two of three matrices in a random half of the layers and one in the others; of the norms of a
    layer one of two. stage: the number of the fine-tuning stage; another number draws other halves. embeddings: whether
    embeddings, head and last norm train. The draw depends on the recipe's seed, the stage and the names only.
    """

    needs_all_weights: ClassVar[bool] = True

    method: Literal["hft"] = "hft"
    stage: Int = Field(default=0, ge=0)
    embeddings: Bool = True

    def select(self, model: nn.Module, *, seed: int, partial: bool = False) -> None:
        """Turns `requires_grad` off for what is not drawn."""
        named = dict(model.named_parameters())
        trained = half_of(named, seed=seed, stage=self.stage, embeddings=self.embeddings)
        for name, parameter in named.items():
            parameter.requires_grad_(name in trained)


def half_of(names: Iterable[str], *, seed: int, stage: int = 0, embeddings: bool = True) -> set[str]:
    """The names that train in a stage. Raises ValueError if the model has no layers with matrices of known names."""
    layers: dict[int, list[str]] = {}
    trained = set()
    for name in names:
        layer = layer_of(name)
        if layer is not None:
            layers.setdefault(layer, []).append(name)
        elif embeddings:
            trained.add(name)
    rng = random.Random(f"half fine-tuning {seed} {stage}")
    feed_forwards = [layer for layer, own in sorted(layers.items()) if any(_of(FEED_FORWARD, own))]
    more = set(rng.sample(feed_forwards, len(feed_forwards) // 2 + (len(feed_forwards) % 2 and rng.randrange(2))))
    found = False
    for layer, own in sorted(layers.items()):
        drawn = [rng.choice(pair) for pair in (LARGE, SMALL) if _of(pair, own)]
        forward = _of(FEED_FORWARD, own)
        count = len(forward) // 2 + (1 if len(forward) % 2 and layer in more else 0)
        drawn += rng.sample(forward, count)
        norms = sorted({name.split(".")[-2] for name in own if "norm" in name.split(".")[-2]})
        drawn += rng.sample(norms, max(1, len(norms) // 2)) if norms else []
        found |= bool(forward) or len(drawn) > 1
        trained |= {name for name in own if name.split(".")[-2] in drawn}
    if not found:
        known = ", ".join((*LARGE, *SMALL, *FEED_FORWARD))
        raise ValueError(f"half fine-tuning knows layers by the names of their matrices ({known}); none is there")
    return trained


def _of(kinds: tuple[str, ...], names: list[str]) -> list[str]:
    """Those of the kinds that a layer has, in a fixed order."""
    present = {name.split(".")[-2] for name in names}
    return [kind for kind in kinds if kind in present]
