"""Codewords of the keys (and queries) of one layer, and how they are found, trained and renewed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from longspan import ops
from longspan.nn.beside import Beside

SAMPLE = 4096  # tokens that the first codewords are found from
ROUNDS = 12  # of k-means
PATIENCE = 100  # refreshes after which a codeword that nothing is near to is replaced
GOLDEN = 0.6180339887498949


class Codebook(Beside):
    """A product quantiser of heads of D components: `weight` [G,M,E,d], float32 or wider, for G groups of heads.

    Args:
        groups: G; heads of one group share codewords.
        dim: D.
        subspaces: M; default pieces of 8 components.
        codewords: E, up to 256.
        power: 2 for Euclidean distances, 1 for SPT's.

    It has no codewords until `fit`. Source: SPT (arXiv 2312.10365); k-means and renewal are ours.
    """

    idle: Tensor  # int32 [G,M,E]: how many times in a row nothing was near to a codeword

    def __init__(
        self,
        groups: int,
        dim: int,
        subspaces: int | None = None,
        codewords: int = 16,
        power: int = 2,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        pieces = -(-dim // 8) if subspaces is None else subspaces
        if not 1 <= pieces <= min(dim, ops.MAX_SUBSPACES):
            raise ValueError(
                f"Codebook: subspaces is {pieces}; a head of {dim} components has 1 to {min(dim, ops.MAX_SUBSPACES)}"
            )
        if not 1 <= codewords <= ops.MAX_CODEWORDS:
            raise ValueError(f"Codebook: codewords is {codewords}; allowed: 1 to {ops.MAX_CODEWORDS}")
        width = -(-dim // pieces)
        if (pieces - 1) * width >= dim:
            raise ValueError(
                f"Codebook: {dim} components do not fill {pieces} pieces of {width}; use {-(-dim // width)} subspaces"
            )
        self.power, self.fitted = power, False
        self.seen = -1  # the forward in which it was renewed last
        shape = (groups, pieces, codewords)
        self.weight = nn.Parameter(torch.zeros(*shape, width, device=device, dtype=dtype))
        self.register_buffer("idle", torch.zeros(shape, dtype=torch.int32, device=device))

    def encode(self, z: Tensor) -> Tensor:
        """Codes int32 [B,H,T,W] of z [B,H,T,D]."""
        return ops.pq_encode(z, self.weight, power=self.power)

    def loss(self, z: Tensor, codes: Tensor, *, commit: bool = False) -> Tensor:
        """`ops.pq_loss` of z, whose codes these are."""
        return ops.pq_loss(z, self.weight, codes, power=self.power, commit=commit)

    @torch.no_grad()
    def fit(self, *vectors: Tensor) -> None:
        """Finds codewords by k-means of vectors [B,H,T,D], H a multiple of G; the same ones whenever they are the same.

        The first are drawn far apart (k-means++, Arthur and Vassilvitskii 2007) by a fixed sequence of numbers.
        """
        some = [_some(z.detach()) for z in vectors]
        self.weight.copy_(
            _spread(torch.cat([self._pieces(z) for z in some], 1), self.weight.shape[2]).unflatten(
                0, self.weight.shape[:2]
            )
        )
        for _ in range(ROUNDS):
            sums, counts = self._stats(some, [self.encode(z) for z in some])
            means = sums / counts.clamp(min=1)[..., None]
            self.weight.copy_(torch.where(counts[..., None] > 0, means, self.weight))
        self.fitted = True

    @torch.no_grad()
    def forget(self) -> None:
        """As it was before `fit`."""
        self.weight.zero_()
        self.idle.zero_()
        self.fitted, self.seen = False, -1

    @torch.no_grad()
    def renew(self, vectors: Sequence[Tensor], codes: Sequence[Tensor], draw: int) -> None:
        """Counts the codewords that no vector has; one without any for a hundred calls becomes a vector.

        draw: which vectors, any number.
        """
        _, counts = self._stats(vectors, codes)
        self.idle.copy_(torch.where(counts > 0, 0, self.idle + 1))
        lost = self.idle >= PATIENCE
        z = vectors[-1].detach()
        batch, heads, length, _ = z.shape
        groups, pieces, codewords, width = self.weight.shape
        numbers = torch.arange(codewords, device=z.device)
        token = (numbers * 40503 + draw * 7919 + 1) % (batch * length)
        head = torch.arange(groups, device=z.device) * (heads // groups)
        found = z[token // length, :, token % length][:, head].to(self.weight.dtype)  # [E,G,D]
        found = nn.functional.pad(found, (0, pieces * width - z.shape[3])).unflatten(2, (pieces, width))
        self.weight.copy_(torch.where(lost[..., None], found.permute(1, 2, 0, 3), self.weight))
        self.idle.copy_(torch.where(lost, 0, self.idle))

    @torch.no_grad()
    def entropy(self, codes: Tensor) -> Tensor:
        """Evenness of the use of codewords by codes [B,H,T,W], 0 for one and 1 for all alike: [G,M]."""
        groups, pieces, codewords, _ = self.weight.shape
        numbers = ops.unpack_codes(codes, pieces, codewords).unflatten(1, (groups, -1))
        used = nn.functional.one_hot(numbers, codewords).sum((0, 2, 3)).double()
        share = used / used.sum(-1, keepdim=True)
        bits = torch.special.entr(share).sum(-1)
        return bits / torch.log(torch.tensor(float(max(2, codewords))))

    def kept(self) -> dict[str, Tensor]:
        """Codewords, how long each has been idle, and whether there are any."""
        return super().kept() | {"fitted": torch.tensor(self.fitted), "seen": torch.tensor(self.seen)}

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `kept` gave."""
        self.weight.copy_(tensors["weight"])
        self.idle.copy_(tensors["idle"])
        self.fitted, self.seen = bool(tensors["fitted"]), int(tensors["seen"])

    def extra_repr(self) -> str:
        """The shape, which has no module to show it."""
        groups, pieces, codewords, width = self.weight.shape
        return f"groups={groups}, subspaces={pieces}, codewords={codewords}, width={width}, power={self.power}"

    def _stats(self, vectors: Sequence[Tensor], codes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        groups, pieces, codewords, width = self.weight.shape
        shape = {"groups": groups, "subspaces": pieces, "codewords": codewords, "width": width}
        found = [ops.pq_stats(z.detach(), c, **shape) for z, c in zip(vectors, codes, strict=True)]
        sums, counts = found[0]
        for more, number in found[1:]:
            sums, counts = sums + more, counts + number
        return sums, counts

    def _pieces(self, z: Tensor) -> Tensor:
        """[G M, vectors, d] of z [B,H,T,D]."""
        groups, pieces, _, width = self.weight.shape
        z = nn.functional.pad(z.to(self.weight.dtype), (0, pieces * width - z.shape[3]))
        z = z.unflatten(1, (groups, -1)).unflatten(4, (pieces, width))
        return z.permute(1, 4, 0, 2, 3, 5).flatten(2, 4).flatten(0, 1)


def _some(z: Tensor) -> Tensor:
    """At most SAMPLE tokens of z [B,H,T,D], evenly apart."""
    step = max(1, -(-z.shape[0] * z.shape[2] // SAMPLE))
    return z[:, :, ::step]


def _spread(x: Tensor, count: int) -> Tensor:
    """`count` of the vectors x [P,N,d] far from each other: [P,count,d]."""
    nearest = torch.ones(x.shape[:2], dtype=x.dtype, device=x.device)
    chosen: list[Tensor] = []
    for number in range(count):
        total = nearest.cumsum(1)
        aim = total[:, -1:] * ((number + 1) * GOLDEN % 1)
        place = torch.searchsorted(total, aim).clamp(max=x.shape[1] - 1)
        one = x.gather(1, place[..., None].expand(-1, -1, x.shape[2]))
        distance = (x - one).square().sum(2)
        nearest = distance if number == 0 else torch.minimum(nearest, distance)
        chosen.append(one)
    return torch.cat(chosen, 1)
