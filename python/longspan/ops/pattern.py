"""Which (query, key) pairs attend: the patterns of the attention engine."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from longspan.ops.topl import KeySelection

KEY_TILE = 256  # keys that the kernels pack together
LIST_TILE = 64  # listed tiles are multiples of it
SINGLE_TILE_GROUP = 512  # from this group size on, group borders fall on tile borders
MOST = 2**31 - 1  # positions have 32 bits, and so has what is compared with them


@dataclass(frozen=True)
class AttentionPattern:
    """A pattern of visible pairs. Build one with `full`, `s2`, `window`, `tiles` or
    `selected`.

    Causality, document borders and a model's own window are ANDed to the pattern. Positions count from the start of
    each document.
    """

    kind: str
    causal: bool = True
    group_size: int = 0
    groups: int = 0
    size: int = 0
    sinks: int = 0
    tile_table: torch.Tensor | None = None
    tile_size: int = 0
    selection: KeySelection | None = None

    def __post_init__(self) -> None:
        for name in ("group_size", "groups", "size", "sinks", "tile_size"):
            value = getattr(self, name)
            if not 0 <= value <= MOST:
                raise ValueError(
                    f"AttentionPattern.{self.kind}: {name} is {value}; allowed: 0 to 2^31 - 1, as positions"
                )

    @classmethod
    def full(cls, causal: bool = True) -> AttentionPattern:
        """All keys of the document; up to the query itself when causal."""
        if not isinstance(causal, bool):
            raise ValueError(f"AttentionPattern.full: causal is {causal!r}; allowed: True, False")
        return cls("full", causal=causal)

    @classmethod
    def s2(cls, groups: int | None = None, *, group_size: int | None = None, sinks: int = 0) -> AttentionPattern:
        """Shifted sparse attention of LongLoRA (Chen et al. 2024, section 3.2; the causal form of appendix B).

        Tokens attend causally inside groups of `group_size`; heads h >= H // 2 use groups shifted by half a group.
        Give `group_size` (even), or `groups` and call `resolve` with the configured length once per run.
        `sinks` keeps the first tokens of each document visible to all; 0 is the paper. Raises ValueError for what does
        not fit.
        """
        if (groups is None) == (group_size is None):
            raise ValueError(f"AttentionPattern.s2: give groups or group_size, not both; got {groups=}, {group_size=}")
        if group_size is not None and (not _integer(group_size) or group_size < 2 or group_size % 2):
            raise ValueError(
                f"AttentionPattern.s2: group_size is {group_size!r}; it must be an even number of at least 2"
            )
        if groups is not None and (not _integer(groups) or groups < 1):
            raise ValueError(f"AttentionPattern.s2: groups is {groups!r}; it must be a positive integer")
        return cls("s2", group_size=group_size or 0, groups=groups or 0, sinks=_sinks("s2", sinks))

    @classmethod
    def window(cls, size: int, sinks: int = 0) -> AttentionPattern:
        """The last `size` keys including the query itself, and the first `sinks` tokens of each document.

        Raises ValueError for what does not fit.
        """
        if not _integer(size) or size < 1:
            raise ValueError(f"AttentionPattern.window: size is {size!r}; it must be a positive integer")
        return cls("window", size=size, sinks=_sinks("window", sinks))

    @classmethod
    def tiles(
        cls, table: torch.Tensor | Sequence[Sequence[Sequence[int]]], tile_size: int = KEY_TILE
    ) -> AttentionPattern:
        """Explicit key tiles for each head and query tile; causality is applied inside them.

        table: for each head (or for one head that stands for all) and query tile, the numbers of the key tiles that it
        sees; nested lists, or an int tensor [(1 or B,) 1, K or H, query tiles, slots], increasing, with -1 behind the
        last. A table for key heads serves all query heads that share them. tile_size: rows and keys of a tile, a
        multiple of 64. Raises ValueError for what does not fit.
        """
        import torch

        if not _integer(tile_size) or tile_size < 1 or tile_size % LIST_TILE:
            raise ValueError(
                f"AttentionPattern.tiles: tile_size is {tile_size!r}; it must be a multiple of {LIST_TILE}"
            )
        if not isinstance(table, torch.Tensor):
            slots = max((len(keys) for head in table for keys in head), default=0)
            rows = [[sorted(set(keys)) + [-1] * (slots - len(set(keys))) for keys in head] for head in table]
            if len({len(head) for head in rows}) > 1:
                raise ValueError("AttentionPattern.tiles: every head must list the same number of query tiles")
            table = torch.tensor(rows, dtype=torch.int32).reshape(len(rows), -1, slots)
        if table.dim() not in (3, 4) or table.dtype not in (torch.int32, torch.int64):
            raise ValueError(
                f"AttentionPattern.tiles: table is {table.dtype} {tuple(table.shape)}; "
                "it must be int [(1 or B,) 1, K or H, query tiles, slots]"
            )
        ends = torch.where(table < 0, torch.iinfo(torch.int32).max, table)
        real = ends[..., 1:] < torch.iinfo(torch.int32).max
        if bool(((ends[..., 1:] <= ends[..., :-1]) & real).any()):
            raise ValueError(
                "AttentionPattern.tiles: the tile numbers of a list must increase, with -1 only at its end"
            )
        return cls.listed(table.to(torch.int32).contiguous(), tile_size)

    @classmethod
    def listed(cls, table: torch.Tensor, tile_size: int) -> AttentionPattern:
        """`tiles` with a table that is right by construction: contiguous int32, read by kernels alone."""
        return cls("tiles", tile_table=table, tile_size=tile_size)

    @classmethod
    def selected(cls, selection: KeySelection, causal: bool = True) -> AttentionPattern:
        """The keys that `topl_threshold` kept, its window and sinks among them; causal as it was told there."""
        return cls("selected", causal=causal, size=selection.window, sinks=selection.sinks, selection=selection)

    def resolve(self, length: int) -> AttentionPattern:
        """Fixes the group size of `s2(groups=n)` from the configured context length, once per run.

        The group is ceil(length / groups) rounded up to an even number, and to whole tiles of 256 from 512 on. Raises
        ValueError for what does not fit.
        """
        if self.kind != "s2" or self.group_size:
            return self
        if not _integer(length) or length < 1:
            raise ValueError(f"AttentionPattern.resolve: length is {length!r}; it must be a positive integer")
        size = -(-length // self.groups)
        step = KEY_TILE if size >= SINGLE_TILE_GROUP else 2
        return dataclasses.replace(self, group_size=-(-size // step) * step)

    def __repr__(self) -> str:
        names = ("group_size", "groups", "size", "sinks", "tile_size")
        shown = [name for name in names if getattr(self, name)] or ["causal"]
        return f"AttentionPattern.{self.kind}({', '.join(f'{n}={getattr(self, n)}' for n in shown)})"


def _integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sinks(method: str, sinks: int) -> int:
    if not _integer(sinks) or sinks < 0:
        raise ValueError(f"AttentionPattern.{method}: sinks is {sinks!r}; it must be 0 or a positive integer")
    return sinks


def check_model_window(name: str, model_window: int | None) -> None:
    """Raises ValueError unless it is a number of 32 bits, or None."""
    if model_window is not None and not 0 <= model_window <= MOST:
        raise ValueError(
            f"{name}: model_window is {model_window}; it must be positive and below 2^31, or None for no window"
        )
