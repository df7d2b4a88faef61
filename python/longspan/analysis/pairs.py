"""How much of the attention of a frozen model a choice of keys keeps, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.patch.backend import OPTIONS, AttentionOptions, Call

# Of queries [1,H,T,D], keys [1,K,S,D] and the call: which keys are kept, bool [H,T,S].
Selector = Callable[[nn.Module, Tensor, Tensor, Call], Tensor]


@dataclass(frozen=True)
class Kept:
    """Means over heads and rows: the share of attention that the kept keys have, and that as many of the largest have;
    the share of those that is kept.
    """

    mass: float
    best: float
    recall: float


@dataclass
class Probe:
    """Stands in for a pattern (`backend.Chooser`): full attention, of which selectors are asked what they would keep.

    found: by selector, one entry for each call.
    """

    selectors: Mapping[str, Selector]
    found: dict[str, list[Kept]] = field(default_factory=dict)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, call: Call) -> Tensor:
        """Full attention."""
        kept = {name: selector(module, q, k, call) for name, selector in self.selectors.items()}
        for name, figures in measure(q, k, call, kept).items():
            self.found.setdefault(name, []).append(figures)
        options: dict[str, Any] = {
            "layout": call.layout,
            "scale": call.scale,
            "softcap": call.softcap,
            "model_window": call.window,
        }
        out = ops.attention(q, k, v, **options)
        assert isinstance(out, Tensor)
        return out


@torch.no_grad()
def measure(q: Tensor, k: Tensor, call: Call, kept: Mapping[str, Tensor]) -> dict[str, Kept]:
    """What each of `kept` bool [H,T,S] keeps of the attention of q [1,H,T,D] to k [1,K,S,D].

    Rows count that see at least twice as many keys as all of them keep; nan without any.
    """
    seen, masks = visible(q, k, call), list(kept.values())
    totals = torch.zeros(len(masks), 3, dtype=torch.float64)
    rows, group = 0, q.shape[1] // k.shape[1]
    for head in range(q.shape[1]) if masks else ():
        counts = torch.stack([(mask[head] & seen).sum(1) for mask in masks])
        some = ((counts.amin(0) > 0) & (seen.sum(1) >= 2 * counts.amax(0))).nonzero().flatten()
        rows += len(some)
        for part in some.split(512):
            weights = weights_of(q[0, head, part], k[0, head // group], call, seen[part])
            order = weights.sort(1, descending=True)
            summed, place = order.values.cumsum(1), torch.arange(weights.shape[1], device=q.device)
            for number, mask in enumerate(masks):
                mine, count = mask[head, part] & seen[part], counts[number, part, None]
                best = mine.gather(1, order.indices) & (place < count)
                found = (weights * mine).sum(1), summed.gather(1, count - 1), best.sum(1, keepdim=True) / count
                totals[number] += torch.stack([x.double().sum().cpu() for x in found])
    means = totals / (rows or float("nan"))
    return {name: Kept(*row) for name, row in zip(kept, means.tolist(), strict=True)}


def visible(q: Tensor, k: Tensor, call: Call) -> Tensor:
    """Bool [T,S]: what causality, documents and the model's window let each query of the one batch row see."""
    length, keys = q.shape[2], k.shape[2]
    if call.layout is None:
        row, column = torch.arange(length, device=q.device)[:, None], torch.arange(keys, device=q.device)
        same = torch.ones(1, 1, dtype=torch.bool, device=q.device)
    else:
        (doc, row), (other, column) = call.layout.queries[:2, 0, :, None], call.layout.keys[:2, 0]
        same = (doc == other) & (other >= 0)
    near = row - column < (call.window or keys + length)
    return same & (column <= row) & near


def weights_of(q: Tensor, k: Tensor, call: Call, seen: Tensor) -> Tensor:
    """Softmax attention of rows q [N,D] to k [S,D] where bool [N,S] is seen: float32 [N,S]."""
    scores = q.float() @ k.float().mT * (q.shape[1] ** -0.5 if call.scale is None else call.scale)
    if call.softcap:
        scores = call.softcap * torch.tanh(scores / call.softcap)
    return scores.masked_fill(~seen, -torch.inf).softmax(1)


def mask_of_lists(lists: Tensor, keys: int) -> Tensor:
    """Bool [H,T,S] of lists int32 [1,H,T,L], -1 behind the last."""
    found = torch.zeros(*lists.shape[1:3], keys + 1, dtype=torch.bool, device=lists.device)
    place = torch.where(lists[0] < 0, keys, lists[0]).long()
    return found.scatter_(2, place, torch.ones_like(place, dtype=torch.bool))[..., :keys]


def mask_of_blocks(table: Tensor, queries: int, keys: int, heads: int, block: int) -> Tensor:
    """Bool [H,T,S] of a table of blocks [1,K,blocks of queries,slots], -1 behind the last."""
    blocks = mask_of_lists(table, -(-keys // block))
    wide = blocks.repeat_interleave(block, 1)[:, :queries].repeat_interleave(block, 2)[..., :keys]
    return wide.repeat_interleave(heads // wide.shape[0], 0)


@contextmanager
def probing(model: nn.Module, selectors: Mapping[str, Selector]) -> Iterator[dict[str, Probe]]:
    """While inside, evaluation of a patched model uses full attention and asks selectors: probes by module path."""
    before = {m: m.__dict__[OPTIONS] for m in model.modules() if OPTIONS in m.__dict__}
    probes: dict[str, Probe] = {}
    for module, options in before.items():
        assert isinstance(options, AttentionOptions)
        probes[options.path] = probe = Probe(selectors)
        setattr(module, OPTIONS, replace(options, prefill=probe))
    try:
        yield probes
    finally:
        for module, options in before.items():
            setattr(module, OPTIONS, options)
