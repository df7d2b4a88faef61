"""Perplexity by context length, with a sliding window."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypedDict

import torch

from longspan.eval.scoring import NextTokenLoss, evaluating


class Score(TypedDict):
    """Mean loss in nats per counted token, its exponential, and how many tokens were counted."""

    loss: float
    ppl: float
    tokens: int


def windows(tokens: int, length: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Windows (begin, end, first counted target) of a text; every target 1 ... tokens-1 is counted exactly
    once.

    The first window counts all its targets, each later one the last ``stride`` (the very last one what is
    left). Every window has ``length`` tokens, so a counted target of a later one sees at least ``length -
    stride``.
    """
    end = min(length, tokens)
    yield 0, end, 1
    while end < tokens:
        counted, end = end, min(end + stride, tokens)
        yield end - length, end, counted


def perplexity(
    model: Any,
    documents: Sequence[Sequence[int]],
    lengths: Sequence[int],
    stride: int | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Score]:
    """Loss and perplexity of ``documents`` (token ids) when the model may look back at most ``length``
    tokens.

    The same targets are counted at every length, so the scores compare. ``stride`` (default half of each
    length, at most length - 1) trades time for context. ``progress`` is told windows done and windows in
    all. Runs with the model's evaluation attention, one window at a time; parameters, modes and random
    state stay as they are.

    Raises ``ValueError`` for no documents, documents of fewer than two tokens, ids outside the vocabulary,
    lengths below 2, a stride outside 1 ... length-1, and a length beyond learned positions.
    """
    lengths = sorted(set(lengths))
    _check(documents, lengths, stride)
    strides = {length: stride if stride is not None else max(1, length // 2) for length in lengths}
    jobs = [
        (length, index, window)
        for length in lengths
        for index, document in enumerate(documents)
        for window in windows(len(document), length, strides[length])
    ]
    sums = dict.fromkeys(lengths, 0.0)
    counts = dict.fromkeys(lengths, 0)
    with evaluating(model):
        losses = NextTokenLoss(model)
        for bad in (max(map(max, documents)), min(map(min, documents))):
            if not 0 <= bad < losses.vocabulary:
                raise ValueError(f"token id {bad} is outside the model's vocabulary of {losses.vocabulary}")
        for done, (length, index, (begin, end, first)) in enumerate(jobs, start=1):
            ids = torch.tensor(documents[index][begin:end], dtype=torch.long, device=model.device)
            sums[length] += losses.sum(ids, first - begin)
            counts[length] += end - first
            if progress is not None:
                progress(done, len(jobs))
    return {length: _score(sums[length], counts[length]) for length in lengths}


def _score(total: float, count: int) -> Score:
    mean = total / count
    return Score(loss=mean, ppl=math.exp(mean) if mean < 700 else math.inf, tokens=count)


def _check(documents: Sequence[Sequence[int]], lengths: Sequence[int], stride: int | None) -> None:
    if not documents:
        raise ValueError("perplexity needs at least one document")
    for index, document in enumerate(documents):
        if len(document) < 2:
            raise ValueError(f"document {index} has {len(document)} tokens; two are needed to predict one")
    if not lengths:
        raise ValueError("perplexity needs at least one length")
    for length in lengths:
        if length < 2:
            raise ValueError(f"a context length must be at least 2, not {length}")
        if stride is not None and not 1 <= stride < length:
            raise ValueError(f"stride must be from 1 to {length - 1} at length {length}, not {stride}")
