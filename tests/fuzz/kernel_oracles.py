"""What entries of `longspan.kernels` give, from the definitions, for tensors named as their arguments.

In a backward of drawn calls out, lse, s and rstd are numbers of no forward; the formulas hold for them all the same.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from longspan import ops
from longspan.ops.pattern import AttentionPattern
from longspan.ops.pq import unpack_codes
from longspan.ops.reference import attention, glu, grouped, lora, loss, magnitude, pq, select, topl
from longspan.ops.reference import list_attention as lists
from tests.ops.pq_cases import pack


def pattern(pattern: str, window: int, group_size: int, sinks: int) -> AttentionPattern:
    if pattern == "full":
        return AttentionPattern.full()
    if pattern == "window":
        return AttentionPattern.window(window, sinks=sinks)
    assert pattern == "s2", pattern
    return AttentionPattern.s2(group_size=group_size, sinks=sinks)


def visible_pairs(batch: int, heads: int, queries: int, keys: int, **named: Any) -> int:
    assert min(batch, heads, queries, keys) >= 0
    return batch * int(attention.visible(pattern(**named), heads, queries, keys).sum())


def _of_heads(x: Tensor, q: Tensor) -> Tensor:
    """Keys or values [B,K,S,D] as the query heads see them."""
    return x.repeat_interleave(q.shape[1] // x.shape[1], 1)


def attention_bwd(
    dout: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv by p = exp(s - lse) and ds = p (dp - dout . out) (Dao 2023); mask: bool [1 or B,H,T,S]."""
    assert dout.shape == out.shape == q.shape
    assert lse.shape == q.shape[:3]
    keys, values, scale = _of_heads(k, q), _of_heads(v, q), q.shape[3] ** -0.5
    p = torch.where(mask, (q @ keys.mT * scale - lse[..., None]).exp(), 0)
    ds = p * (dout @ values.mT - (dout * out).sum(-1, keepdim=True)) * scale
    share = (k.shape[1], q.shape[1] // k.shape[1])
    dk, dv = (x.unflatten(1, share).sum(2) for x in (ds.mT @ q, p.mT @ dout))
    return ds @ keys, dk, dv


def _listed(indices: Tensor, keys: int) -> Tensor:
    """Which pairs lists [B,H,T,L] hold: bool [B,H,T,keys]."""
    assert indices.dtype == torch.int32
    follows = (indices[..., 1:] > indices[..., :-1]) | (indices[..., 1:] == -1)
    assert follows.all()
    assert ((indices >= -1) & (indices < keys)).all()
    found = torch.zeros(*indices.shape[:3], keys + 1, dtype=torch.bool)
    return found.scatter_(3, torch.where(indices >= 0, indices, keys).long(), True)[..., :keys]


def list_fwd(q: Tensor, k: Tensor, v: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
    _listed(indices, k.shape[2])
    return lists.list_attention(q, k, v, indices)


def list_bwd(k: Tensor, indices: Tensor, starts: Tensor, rows: Tensor, **rest: Tensor) -> tuple[Tensor, ...]:
    wanted = list_transpose(indices, k.shape[2])
    assert all(torch.equal(*pair) for pair in zip((starts, rows), wanted, strict=True))
    return attention_bwd(k=k, mask=_listed(indices, k.shape[2]), **rest)


def list_transpose(indices: Tensor, keys: int) -> tuple[Tensor, Tensor]:
    _listed(indices, keys)
    return lists.list_transpose(indices, keys)


def glu_bwd(dy: Tensor, gate: Tensor, up: Tensor, activation: str) -> tuple[Tensor, ...]:
    given = [x.clone().requires_grad_() for x in (gate, up)]
    return torch.autograd.grad(glu.glu(*given, activation), given, dy)


def norm_bwd(dy: Tensor, x: Tensor, rstd: Tensor, weight: Tensor, need_dweight: bool, weight_offset: float) -> Any:
    n, g = x * rstd[:, None], dy * (weight + weight_offset)
    dweight = (dy * n).sum(0) if need_dweight else None
    return rstd[:, None] * (g - (g * n).mean(-1, keepdim=True) * n), dweight, None


def lora_fwd(x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float) -> Any:
    assert lora_b.shape == (len(weight), len(lora_a))
    return lora.lora_linear(x, weight, None, lora_a, lora_b, scaling), x @ lora_a.T, None, None


def lora_bwd(
    dy: Tensor, x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, s: Tensor, scaling: float
) -> dict[str, Tensor]:
    ds = scaling * (dy @ lora_b)
    return {"dx": dy @ weight + ds @ lora_a, "dlora_a": ds.T @ x, "dlora_b": scaling * (dy.T @ s)}


def cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, segment: int, need_dhidden: bool) -> Any:
    assert segment >= 1
    assert labels.shape == hidden.shape[:1]
    given = hidden.clone().requires_grad_()
    losses = loss.segment_linear_cross_entropy(given, weight, labels, reduction="none")
    losses = losses.to(hidden.dtype)
    (dhidden,) = torch.autograd.grad(losses.sum(), given)
    return losses.sum().detach(), losses.detach(), dhidden if need_dhidden else None, None, None


def grouped_product(kind: str, offsets: Tensor, blocks: int, active: int, **given: Tensor) -> Tensor:
    sets = ops.BlockSets(offsets, blocks, active)
    assert len(offsets) == sets.count + 1
    assert int(offsets[0]) == 0
    first = next(iter(given.values()))
    assert int(offsets[-1]) == len(first)
    assert (offsets.diff() >= 0).all()
    entry = {"expand": grouped.grouped_expand, "reduce": grouped.grouped_reduce, "weight": grouped.grouped_weight}
    return entry[kind](**given, sets=sets)


def block_score(q: Tensor, k: Tensor, starts: Tensor, counts: Tensor, segments: Tensor, most_blocks: int) -> Tensor:
    pairs = list(zip(starts.tolist(), counts.tolist(), strict=True))
    runs = [pairs[a:b] for a, b in itertools.pairwise(segments.tolist())]
    assert all(0 < n <= 256 and a >= 0 and a + n <= len(q) for a, n in pairs)
    assert segments[0] == 0
    assert segments[-1] == len(pairs)
    assert all(len(each) <= most_blocks for each in runs)
    found = select.block_score(q, k, runs)
    more = most_blocks - found.shape[1]
    return torch.nn.functional.pad(found, (0, more, 0, more))


def encode(z: Tensor, codebook: Tensor, power: int) -> Tensor:
    assert power in (1, 2)
    return pack(pq.pq_encode(z, codebook, power), codebook.shape[2])


def quantiser_loss(z: Tensor, codebook: Tensor, codes: Tensor, need_dz: bool) -> tuple[Any, ...]:
    if not z.numel():  # the mean of nothing
        return torch.zeros(1), torch.zeros_like(codebook), torch.zeros_like(z) if need_dz else None
    given = [x.clone().requires_grad_() for x in (codebook, z)]
    total = pq.pq_loss(given[1], given[0], unpack_codes(codes, codebook.shape[1], codebook.shape[2]))
    dcodebook, dz = torch.autograd.grad(total, given)
    return total.detach()[None], dcodebook, dz if need_dz else None


def quantiser_stats(z: Tensor, codes: Tensor, groups: int, subspaces: int, codewords: int, width: int) -> Any:
    assert z.shape[1] % groups == 0
    assert width <= 256
    assert z.shape[3] <= subspaces * width
    return pq.pq_stats(z, unpack_codes(codes, subspaces, codewords), (groups, subspaces, codewords, width))


def kept_keys(
    key_codes: Tensor, budget: int, query_codes: Tensor, subspaces: int, codewords: int, window: int
) -> tuple[Tensor, Tensor]:
    """How many keys are kept and which, by equal codes: int32 [B,H,T] and lists [B,H,T,budget]."""
    assert budget >= 1
    assert window >= 0
    nothing = torch.zeros(())
    selection = ops.KeySelection(key_codes, nothing, nothing, nothing, subspaces, codewords, query_codes)
    found = topl.scores(selection)
    _, H, T, S = found.shape
    reach = attention.visible(AttentionPattern.full(), H, T, S).expand(found.shape)
    near = torch.zeros_like(reach)
    if window:
        near = attention.visible(AttentionPattern.window(window), H, T, S).expand(found.shape)
    kept = topl.topl_threshold(found, reach, near, budget)
    return kept.sum(-1), topl.topl_indices(kept, budget)


def kth(tensors: list[Tensor], groups: list[int], wanted: Tensor, exact: bool) -> Any:
    """bits, kept and the squares of kept and of all, by sorting."""
    assert sorted(set(groups)) == list(range(len(wanted)))
    bits, kept, squares = [], [], torch.zeros(2, len(wanted), dtype=torch.float64)
    for g, count in enumerate(wanted.tolist()):
        mine = [x for x, group in zip(tensors, groups, strict=True) if group == g]
        flat = torch.cat([x.flatten().double() for x in mine])
        assert 1 <= count <= len(flat)
        value, keeps = magnitude.kth_magnitude(mine, count, exact=exact)
        bits.append(torch.tensor(value, dtype=torch.float32).view(torch.int32))
        kept.append(keeps.sum())
        squares[0, g], squares[1, g] = flat[keeps].square().sum(), flat.square().sum()
    return torch.stack(bits), torch.stack(kept), squares


def squares(tensors: list[Tensor], groups: list[int], count: int) -> Tensor:
    assert 1 <= count <= 1 << 16
    total = torch.zeros(count, dtype=torch.float64)
    for x, group in zip(tensors, groups, strict=True):
        assert 0 <= group < count
        total[group] += x.double().square().sum()
    return total
