"""The oracle of token methods: a stock model in which masks do what rows that take no part do not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from longspan.patch.layers.families import FAMILIES
from longspan.patch.layers.parts import attribute
from longspan.patch.tokens import select

Block = tuple[int, int, int]  # sample, first, end


def blocks_of(lengths: list[list[tuple[int, int]]], block: int) -> list[list[list[Block]]]:
    """By sample and document: (sample, first, end) of its blocks; lengths: (first, end) of documents."""
    return [
        [[(b, i, min(i + block, end)) for i in range(first, end, block)] for first, end in documents]
        for b, documents in enumerate(lengths)
    ]


def chosen(scores: list[float], documents: list[list[Block]], ratio: float) -> list[Block]:
    """The best max(1, floor(ratio n)) blocks of every document, ties to the earlier; scores of all in order."""
    kept, place = [], 0
    for blocks in documents:
        own = scores[place : place + len(blocks)]
        place += len(blocks)
        order = sorted(range(len(blocks)), key=lambda i: (-own[i], i))
        kept += [blocks[i] for i in sorted(order[: max(1, int(ratio * len(blocks)))])]
    return kept


class Fixed:
    """Random scores that the oracle knows too; stands in for the selector `random`."""

    def __init__(self, documents: list[list[tuple[int, int]]], length: int, block: int, ratio: float) -> None:
        self.length, self.ratio = length, ratio
        self.samples = len(documents)
        self.documents = list(itertools.chain.from_iterable(blocks_of(documents, block)))
        self.calls: list[str] = []

    def scores(self, path: str) -> list[float]:
        count = sum(map(len, self.documents))
        generator = torch.Generator().manual_seed(sum(map(ord, path)))
        return torch.rand(count, generator=generator, dtype=torch.float64).tolist()

    def kept(self, path: str, ratio: float | None = None) -> Tensor:
        """Bool [B,T]."""
        mask = torch.zeros(self.samples, self.length, dtype=torch.bool)
        for b, first, end in chosen(self.scores(path), self.documents, self.ratio if ratio is None else ratio):
            mask[b, first:end] = True
        return mask

    @contextmanager
    def installed(self) -> Iterator[None]:
        def score(layer: Any, tokens: Any, rows: Tensor, stream: Any) -> Tensor:
            self.calls.append(tokens.path)
            return torch.tensor(self.scores(tokens.path), dtype=torch.float64)

        before = select.BEFORE_SCORES["random"]
        select.BEFORE_SCORES["random"] = score
        try:
            yield
        finally:
            select.BEFORE_SCORES["random"] = before


@contextmanager
def masked(model: nn.Module, kept: dict[str, Tensor], *, eliminate: bool, mlp: str) -> Iterator[None]:
    """Stock layers by path, with the kept tokens [B,T] of each: attention eliminated, or of the gradient alone."""
    handles: list[Any] = []
    for path, mask in kept.items():
        layer = model.get_submodule(path)
        family = FAMILIES[type(layer).__name__]
        attention = attribute(layer, family.attention)
        branch = attribute(layer, family.post1) if family.post1 else attention
        handles.append(branch.register_forward_hook(_output(mask, zero=eliminate)))
        keys = mask if eliminate else torch.ones_like(mask)
        handles.append(attention.register_forward_pre_hook(_keys(keys), with_kwargs=True))
        if not eliminate:
            for name in (*family.qkv, *(family.qk_norm or ())):
                handles.append(attribute(layer, name).register_forward_hook(_output(mask, zero=False)))
        if mlp != "dense":
            branch = attribute(layer, family.post2 or family.mlp or family.down)
            handles.append(branch.register_forward_hook(_output(mask, zero=mlp == "skip")))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _output(mask: Tensor, *, zero: bool) -> Any:
    """Rows that take no part: 0, or without a gradient."""

    def hook(module: nn.Module, given: Any, output: Any) -> Any:
        y = output[0] if isinstance(output, tuple) else output
        m = mask.reshape(-1, 1) if y.dim() == 2 else mask.reshape(*mask.shape, *(1,) * (y.dim() - 2))
        y = torch.where(m, y, torch.zeros_like(y) if zero else y.detach())
        return (y, *output[1:]) if isinstance(output, tuple) else y

    return hook


def _keys(mask: Tensor) -> Any:
    """Tokens that take no part are no keys (each stays its own, so that no softmax is empty)."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        length = mask.shape[1]
        seen = mask[:, None, None, :] | torch.eye(length, dtype=torch.bool)
        given = kwargs["attention_mask"]
        lowest = -1e30  # a row of padding that sees nothing must not overflow
        if given is None:
            causal = torch.ones(length, length, dtype=torch.bool).tril()
            bias = torch.where(causal & seen, 0.0, lowest).double()
        else:
            bias = torch.where(seen, given.double(), lowest).clamp(min=lowest)
        return args, kwargs | {"attention_mask": bias}

    return hook
