"""Runs of neighbouring tokens that are kept or left together, by sample or packed document."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MAX_BLOCK = 256


@dataclass(frozen=True)
class TokenBlocks:
    """Blocks of at most `block` tokens of a flattened batch [M]; a segment (a sample or a document) has its own.

    starts, counts: int32 [N], the first row and the rows of each block; segments: int32 [S+1], the block at which each
    segment begins; all on one device. The host knows `cu_blocks` (segments as integers), the most blocks of a segment,
    and whether all blocks are full, so that nothing waits for a device. Padding belongs to no block. A segment's last
    block may be shorter.
    """

    block: int
    rows: int
    starts: Tensor
    counts: Tensor
    segments: Tensor
    cu_blocks: tuple[int, ...]
    most: int
    full: bool

    @classmethod
    def of(
        cls,
        segments: Sequence[tuple[int, int]],
        rows: int,
        block: int = 64,
        *,
        device: torch.device | str | None = None,
    ) -> TokenBlocks:
        """Blocks of segments given as (first row, rows) of `rows` in all.

        Raises ValueError for a block size that is not 1 to 256 and for a segment outside of the rows.
        """
        if not 1 <= block <= MAX_BLOCK:
            raise ValueError(f"TokenBlocks: block is {block}; allowed: 1 to {MAX_BLOCK} tokens")
        starts: list[int] = []
        counts: list[int] = []
        cu_blocks, most = [0], 0
        for first, count in segments:
            if first < 0 or count < 0 or first + count > rows:
                raise ValueError(f"TokenBlocks: a segment has {count} rows from {first}; there are {rows}")
            begins = range(first, first + count, block)
            starts += begins
            counts += [min(block, first + count - start) for start in begins]
            cu_blocks.append(cu_blocks[-1] + len(begins))
            most = max(most, len(begins))
        begin, sizes, borders = (torch.tensor(x, dtype=torch.int32, device=device) for x in (starts, counts, cu_blocks))
        return cls(block, rows, begin, sizes, borders, tuple(cu_blocks), most, all(count == block for count in counts))

    @classmethod
    def even(cls, batch: int, length: int, block: int = 64, *, device: torch.device | str | None = None) -> TokenBlocks:
        """A segment a sample: `batch` samples of `length` tokens."""
        return cls.of([(b * length, length) for b in range(batch)], batch * length, block, device=device)

    @classmethod
    def packed(cls, cu_seqlens: Tensor, block: int = 64) -> TokenBlocks:
        """A segment a document: document i holds rows cu_seqlens[i] to cu_seqlens[i+1]. Reads cu_seqlens."""
        borders = [int(x) for x in cu_seqlens]
        segments = [(a, b - a) for a, b in itertools.pairwise(borders)]
        return cls.of(segments, borders[-1], block, device=cu_seqlens.device)

    @classmethod
    def padded(cls, mask: Tensor, block: int = 64) -> TokenBlocks:
        """A segment a sample: mask [B,T], true (or 1) on its tokens, which lie side by side. Reads the mask.

        Raises ValueError where padding lies between tokens.
        """
        rows, length = mask.shape
        segments = []
        for row, real in enumerate(mask.to("cpu", torch.bool)):
            places = real.nonzero().flatten()
            first, count = (int(places[0]), len(places)) if len(places) else (0, 0)
            if count and int(places[-1]) != first + count - 1:
                raise ValueError(f"TokenBlocks: padding lies between the tokens of sample {row}; put it on one side")
            segments.append((row * length + first, count))
        return cls.of(segments, rows * length, block, device=mask.device)

    def to(self, device: torch.device | str) -> TokenBlocks:
        """The blocks on another device."""
        starts, counts, segments = (x.to(device) for x in (self.starts, self.counts, self.segments))
        return replace(self, starts=starts, counts=counts, segments=segments)

    def gather(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Rows of x [M,...] by block: [N, block, ...], with `fill` where a block is shorter."""
        rows, there = self._places(self.starts, self.counts)
        if self.full:
            return x[rows]
        missing = ~there
        found = x[rows.masked_fill(missing, 0)]
        return found.masked_fill(missing.reshape(*missing.shape, *(1,) * (x.dim() - 1)), fill)

    def rows_of(self, ids: Tensor) -> Tensor:
        """The rows of blocks `ids` [n] one after the other: int64 [K].

        Waits for the device where a block is not full: how many rows there are then depends on `ids`.
        """
        rows, there = self._places(self.starts[ids], self.counts[ids])
        return rows.flatten() if self.full else rows[there]

    def _places(self, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Of blocks [n]: the row of every place [n, block] (int64), and whether the block has it."""
        offsets = torch.arange(self.block, device=starts.device)
        return starts.long()[:, None] + offsets, offsets < counts[:, None]
