"""The problems of the roofline page, and how many tiles each block visits in them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.static.kernels import Tile
from bench.static.launches import Attention, Loss


@dataclass(frozen=True)
class Pattern:
    """What a row sees, beside being causal: everything, its shifted group of `size`, or a window of `size` keys."""

    kind: str  # "full", "groups" or "window"
    size: int = 0

    def low(self, row: int, shifted: bool) -> int:
        """The first key that the row sees; the last is the row itself."""
        if self.kind == "window":
            return max(0, row - self.size + 1)
        if self.kind == "groups":
            shift = self.size // 2 if shifted else 0
            return max(0, (row + shift) // self.size * self.size - shift)
        return 0

    def pairs(self, tokens: int, heads: int) -> int:
        """Visible (row, key) pairs over all heads."""
        halves = [heads - heads // 2, heads // 2]
        return sum(
            count * sum(row - self.low(row, shifted) + 1 for row in range(tokens))
            for count, shifted in zip(halves, (False, True), strict=True)
            if count
        )


@dataclass(frozen=True)
class AttentionWorkload:
    """Attention of one named size and pattern; `problem` is what is launched."""

    name: str
    problem: Attention
    pattern: Pattern

    def flop(self) -> int:
        """Useful operations: 2 products forward and 5 backward over the visible pairs."""
        products = 2 if self.problem.direction == "fwd" else 5
        return products * 2 * self.problem.D * self.pattern.pairs(self.problem.tokens, self.problem.heads)


@dataclass(frozen=True)
class LossWorkload:
    """The cross-entropy of one segment of logits."""

    name: str
    problem: Loss


def visits(workload: AttentionWorkload, tile: Tile) -> Iterator[int]:
    """Tiles that each block multiplies, in the order of the blocks: those with a visible pair."""
    problem, pattern = workload.problem, workload.pattern
    heads, tokens = problem.heads, problem.tokens
    half = heads // 2 if pattern.kind == "groups" else heads
    if not tile.owns_keys:
        spans = {
            shifted: [
                _last(first, tile.rows, tokens) // tile.keys - pattern.low(first, shifted) // tile.keys + 1
                for first in reversed(range(0, tokens, tile.rows))
            ]
            for shifted in (False, True)
        }
        for head in range(heads):
            yield from spans[head >= half]
        return
    seen = {shifted: _rows_that_see(pattern, shifted, tile, tokens) for shifted in (False, True)}
    group = heads // problem.key_heads
    for key_head in range(problem.key_heads):
        of_group = [seen[head >= half] for head in range(key_head * group, (key_head + 1) * group)]
        for counts in zip(*of_group, strict=True):
            yield from [sum(counts)] * tile.parts


def _last(first: int, size: int, tokens: int) -> int:
    return min(first + size, tokens) - 1


def _rows_that_see(pattern: Pattern, shifted: bool, tile: Tile, tokens: int) -> list[int]:
    """For each key tile the number of row tiles that see any of its keys."""
    starts = range(0, tokens, tile.rows)
    spans = [(pattern.low(first, shifted), _last(first, tile.rows, tokens)) for first in starts]
    return [
        sum(low <= _last(key, tile.keys, tokens) and last >= key for low, last in spans)
        for key in range(0, tokens, tile.keys)
    ]


def attention_workloads() -> list[AttentionWorkload]:
    """Both directions of causal attention at 4096 and 16384 tokens, and the sparse patterns at 16384."""
    patterns = [
        ("causal", 4096, Pattern("full")),
        ("causal", 16384, Pattern("full")),
        ("shifted groups of 2048", 16384, Pattern("groups", 2048)),
        ("window of 1024", 16384, Pattern("window", 1024)),
    ]
    return [
        AttentionWorkload(f"{text}, T={tokens}", Attention(direction, tokens=tokens), pattern)
        for direction in ("fwd", "bwd")
        for text, tokens, pattern in patterns
    ]


def loss_workloads() -> list[LossWorkload]:
    """One segment of 4096 rows over SmolLM2's vocabulary, with its gradient."""
    return [LossWorkload("loss and gradient, 4096 rows, V=49152", Loss("bfloat16", 4096, 49152))]
