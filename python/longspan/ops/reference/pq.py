"""The product quantiser by its definition, any float dtype; codes and scores as whole tensors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def _pieces(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """z [B,H,T,D] as [B,H,T,M,d], and the codebook of each head [H,M,E,d]."""
    groups, subspaces, _, width = codebook.shape
    padded = functional.pad(z.to(codebook.dtype), (0, subspaces * width - z.shape[3]))
    return padded.unflatten(3, (subspaces, width)), codebook.repeat_interleave(z.shape[1] // groups, 0)


def distances(z: Tensor, codebook: Tensor, power: int) -> Tensor:
    """[B,H,T,M,E], sums in the order of components, rounded one by one."""
    pieces, books = _pieces(z, codebook)
    total = pieces.new_zeros((*pieces.shape[:4], codebook.shape[2]))
    for j in range(codebook.shape[3]):
        difference = pieces[..., None, j] - books[None, :, None, :, :, j]
        total = total + (difference.abs() if power == 1 else difference * difference)
    return total


def pq_encode(z: Tensor, codebook: Tensor, power: int = 2) -> Tensor:
    """Numbers [B,H,T,M] of the nearest codewords, ties to the lowest."""
    found = distances(z, codebook, power)
    lowest = found.amin(-1, keepdim=True)
    return (found == lowest).to(torch.uint8).argmax(-1)


def pq_loss(z: Tensor, codebook: Tensor, codes: Tensor, power: int = 2, eps: float = 1e-5) -> Tensor:
    """The loss from elementary operations; codes are numbers [B,H,T,M]."""
    pieces, books = _pieces(z, codebook)
    difference = pieces[..., None, :] - books[None, :, None]
    distance = difference.abs().sum(-1) if power == 1 else difference.square().sum(-1)
    weights = 1 / distance.clamp(min=eps)
    weights = weights / weights.sum(-1, keepdim=True)
    soft = torch.einsum("bhtme,hmed->bhtmd", weights, books)
    index = codes[..., None, None].expand(*codes.shape, 1, codebook.shape[3])
    hard = books[None, :, None].expand(*codes.shape[:3], *books.shape[1:]).gather(4, index).squeeze(4)
    size = z.numel()
    return (soft - hard).square().sum() / size + (pieces - hard).square().sum() / size


def pq_stats(z: Tensor, codes: Tensor, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor]:
    """Sums [G,M,E,d] and counts [G,M,E] of the vectors of each codeword; codes are numbers [B,H,T,M]."""
    groups, subspaces, codewords, width = shape
    chosen = functional.one_hot(codes, codewords)
    padded = functional.pad(z, (0, subspaces * width - z.shape[3])).unflatten(3, (subspaces, width))
    sums = torch.einsum("bhtme,bhtmd->hmed", chosen.to(z.dtype), padded)
    counts = chosen.sum((0, 2))
    share = z.shape[1] // groups
    return sums.unflatten(0, (groups, share)).sum(1), counts.unflatten(0, (groups, share)).sum(1).int()
