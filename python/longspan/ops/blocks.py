"""Runs of neighbouring tokens that are kept or left together, by sample or packed document."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longspan.ops._rows import check_distinct, readable

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
        """A segment a document: document i holds rows cu_seqlens[i] to cu_seqlens[i+1]. Reads cu_seqlens.

        Raises ValueError for what is no list of borders that grow.
        """
        if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"TokenBlocks.packed: cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}; it must be int32 or "
                "int64 [documents + 1]"
            )
        borders = cu_seqlens.tolist()
        segments = [(a, b - a) for a, b in itertools.pairwise(borders)]
        return cls.of(segments, borders[-1], block, device=cu_seqlens.device)

    @classmethod
    def padded(cls, mask: Tensor, block: int = 64) -> TokenBlocks:
        """A segment a sample: mask [B,T], true (or 1) on its tokens, which lie side by side. Reads the mask.

        Raises ValueError where padding lies between tokens.
        """
        if mask.dim() != 2:
            raise ValueError(f"TokenBlocks.padded: mask has shape {tuple(mask.shape)}; it must be [B, T]")
        rows, length = mask.shape
        segments = []
        for row, real in enumerate(mask.to("cpu", torch.bool)):
            places = real.nonzero().flatten()
            first, count = (int(places[0]), len(places)) if len(places) else (0, 0)
            if count and int(places[-1]) != first + count - 1:
                raise ValueError(f"TokenBlocks: padding lies between the tokens of sample {row}; put it on one side")
            segments.append((row * length + first, count))
        return cls.of(segments, rows * length, block, device=mask.device)

    def __post_init__(self) -> None:
        if not 1 <= self.block <= MAX_BLOCK:
            raise ValueError(f"TokenBlocks: block is {self.block}; allowed: 1 to {MAX_BLOCK} tokens")
        sizes = [b - a for a, b in itertools.pairwise(self.cu_blocks)]
        count = self.cu_blocks[-1] if self.cu_blocks else -1
        if count < 0 or self.cu_blocks[0] != 0 or min(sizes, default=0) < 0 or max(sizes, default=0) != self.most:
            raise ValueError(
                f"TokenBlocks: cu_blocks is {self.cu_blocks} and most {self.most}; they must grow from 0, by most"
            )
        for name, x, length in (
            ("starts", self.starts, count),
            ("counts", self.counts, count),
            ("segments", self.segments, len(self.cu_blocks)),
        ):
            if x.dtype != torch.int32 or x.shape != (length,) or x.device != self.starts.device:
                raise ValueError(
                    f"TokenBlocks: {name} is {x.dtype} {tuple(x.shape)} on {x.device}; it must be int32 ({length},) on "
                    f"{self.starts.device}"
                )
        if all(readable(x) for x in (self.starts, self.counts, self.segments)):
            self._check_rows(self.starts.tolist(), self.counts.tolist())

    def _check_rows(self, starts: list[int], counts: list[int]) -> None:
        """Raises ValueError where a block does not lie within the rows, or shares some with another."""
        if tuple(self.segments.tolist()) != self.cu_blocks:
            raise ValueError(f"TokenBlocks: segments are {self.segments.tolist()} and cu_blocks {self.cu_blocks}")
        end = 0
        for start, size in sorted(zip(starts, counts, strict=True)):
            if start < 0 or not 1 <= size <= self.block or start + size > self.rows:
                raise ValueError(
                    f"TokenBlocks: a block has {size} rows from {start}; allowed: 1 to {self.block} of {self.rows}"
                )
            if start < end:
                raise ValueError(f"TokenBlocks: row {start} is in two blocks; segments must not overlap")
            end = start + size
        if self.full != all(size == self.block for size in counts):
            raise ValueError(f"TokenBlocks: full is {self.full}, but counts are {counts}")

    def to(self, device: torch.device | str) -> TokenBlocks:
        """The blocks on another device."""
        starts, counts, segments = (x.to(device) for x in (self.starts, self.counts, self.segments))
        return replace(self, starts=starts, counts=counts, segments=segments)

    def gather(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Rows of x [M,...] by block: [N, block, ...], with `fill` where a block is shorter.

        Raises ValueError unless x has that many rows.
        """
        if x.dim() < 1 or x.shape[0] != self.rows:
            raise ValueError(f"TokenBlocks.gather: x has shape {tuple(x.shape)}; it must be [{self.rows}, ...]")
        rows, there = self._places(self.starts, self.counts)
        if self.full:
            return x[rows]
        missing = ~there
        found = x[rows.masked_fill(missing, 0)]
        return found.masked_fill(missing.reshape(*missing.shape, *(1,) * (x.dim() - 1)), fill)

    def rows_of(self, ids: Tensor) -> Tensor:
        """The rows of blocks `ids` [n] one after the other: int64 [K].

        Waits for the device where a block is not full: how many rows there are then depends on `ids`. Raises ValueError
        for ids out of range or given twice, where they are in CPU memory.
        """
        if ids.dim() != 1 or ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"TokenBlocks.rows_of: ids is {ids.dtype} {tuple(ids.shape)}; it must be int64 or int32 [n]"
            )
        check_distinct("TokenBlocks.rows_of: ids", ids, len(self.starts))
        rows, there = self._places(self.starts[ids], self.counts[ids])
        return rows.flatten() if self.full else rows[there]

    def _places(self, starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Of blocks [n]: the row of every place [n, block] (int64), and whether the block has it."""
        offsets = torch.arange(self.block, device=starts.device)
        return starts.long()[:, None] + offsets, offsets < counts[:, None]
