"""What the CPU's kernels take as scratch: the formulas against the allocator, op by op."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from longspan import ops
from longspan.memory import measure
from longspan.ops._define import REGISTERED, SCRATCH
from longspan.ops.scratch import Machine, scratch_bytes

H, K, D, C, V = 6, 2, 20, 96, 500
# Ops whose contract says that they take none (docs/rope.md, glu.md, list_attention.md, update.md, perturb.md).
WITHOUT = {"rope", "rope_", "glu_fwd", "glu_bwd", "list_transpose"}
WITHOUT |= {"masked_adamw_", "masked_sgd_", "perturb_", "es_update_"}


class Compare(TorchDispatchMode):
    """Measures every op of longspan and keeps (name, bytes beside the outputs, bytes by the formula)."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[str, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.name().startswith("longspan::"):
            return func(*args, **(kwargs or {}))
        with measure() as m:
            out = func(*args, **(kwargs or {}))
        outputs = sum(x.untyped_storage().nbytes() for x in tree_leaves(out) if isinstance(x, Tensor))
        self.rows.append((func.name(), m.peak_bytes - outputs, scratch_bytes(func.name(), args, Machine.here())))
        return out


def run_all(T: int, dtype: torch.dtype, dropout: float, norm: str, bias: bool, full: bool) -> Compare:
    """One small layer and a loss, forward and backward, through every op."""
    torch.manual_seed(0)

    def leaf(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=dtype).requires_grad_()

    def weight(*sizes: int) -> Tensor:
        return leaf(*sizes).requires_grad_(full)

    x, heads = leaf(T, C), ((H, 8), (K, 4), (K, 0))
    group = [
        ops.Projection(
            weight(n * D, C),
            leaf(n * D) if bias else None,
            leaf(r, C) if r else None,
            leaf(n * D, r) if r else None,
            2.0,
        )
        for n, r in heads
    ]
    spec = None if norm == "none" else ops.Norm(weight(C), leaf(C) if norm == "layer" else None, norm)
    with Compare() as found:
        made = ops.norm_lora_linear(x, group, spec, dropout_p=dropout)
        q, k, v = (y.unflatten(1, (n, D)).transpose(0, 1)[None] for y, (n, _) in zip(made, heads, strict=True))
        ops.block_score(made[0].unflatten(1, (H, D)), made[1].unflatten(1, (K, D)), ops.TokenBlocks.even(1, T))
        pattern = ops.AttentionPattern.s2(group_size=64) if T % 2 else None
        out = ops.attention(q, k, v, pattern, softcap=5.0 if bias else None)
        rows = out[0].transpose(0, 1).reshape(T, -1)
        adapter = leaf(4, H * D), leaf(C, 4)
        y = ops.lora_linear(rows, leaf(C, H * D), None, *adapter, 1.0, dropout, residual=x)
        z = ops.layer_norm(ops.rms_norm(ops.activation(y, "silu"), leaf(C)), leaf(C), leaf(C))
        labels = torch.randint(0, V, (T,))
        labels[-1] = -100
        labels[3] = -100 if bias else 1
        ops.segment_linear_cross_entropy(z, leaf(V, C), labels, segment=256, bias=leaf(V) if bias else None).backward()
    return found


def run_sparse(T: int, dtype: torch.dtype, softcap: float | None, heads: int, active: int) -> Compare:
    """Sparse attention in all forms and a routed feed-forward, forward and backward."""
    torch.manual_seed(0)
    M, E, r = 5, 16, 8

    def leaf(*sizes: int) -> Tensor:
        return torch.randn(*sizes, dtype=dtype).requires_grad_()

    q, k, v = leaf(2, H, T, D), leaf(2, K, T, D), leaf(2, K, T, D)
    kind = torch.float64 if dtype == torch.float64 else torch.float32
    codebook = torch.randn(K, M, E, D // M, dtype=kind).requires_grad_()
    with Compare() as found:
        codes = ops.pq_encode(k, codebook)
        ops.pq_stats(k, codes, groups=K, subspaces=M, codewords=E, width=D // M)
        ops.adc_table(q, codebook)
        loss = ops.pq_loss(k.detach(), codebook, codes)
        match = ops.topl_threshold(codes, 40, query_codes=ops.pq_encode(q, codebook), subspaces=M, codewords=E)
        chosen = ops.topl_threshold(codes, 40, q=q, codebook=codebook, window=8, sinks=4)
        for pattern in (
            ops.AttentionPattern.selected(match),
            ops.AttentionPattern.selected(chosen),
            ops.AttentionPattern.tiles([[list(range(i % 3, i + 1)) for i in range(-(-T // 64))]] * heads, 64),
        ):
            loss = loss + ops.attention(q, k, v, pattern, softcap=softcap).sum().to(kind)
        loss = loss + ops.list_attention(q, k, v, ops.topl_indices(chosen, 40, q=q), softcap=softcap).sum().to(kind)
        x, up, down = leaf(T, C), leaf(4 * 24, C), leaf(C, 4 * 24)
        parts = [ops.Projection(w, None, leaf(r, w.shape[1]), leaf(w.shape[0], r), 2.0) for w in (up, up, down)]
        act, gates = ops.route_topk(torch.randn(T, 4), active)
        y = ops.routed_ffn(x, parts[:2], parts[2], ops.route_plan(act, 4), gates, activation="silu")
        (loss + y.sum().to(kind)).backward()
    return found


def run_updates(size: int, dtype: torch.dtype) -> Compare:
    """Magnitudes of small groups and of one that all workers share, and steps."""
    with Compare() as found:
        small, large = (
            [torch.randn(size).to(dtype), torch.randn(7, 5).to(dtype)],
            torch.randn((1 << 22) + size).to(dtype),
        )
        ops.kth_magnitude(small, [3], groups=[0, 0])
        ops.kth_magnitude([*small, large], [3, 4, 1 << 20])
        ops.magnitude_histogram([*small, large])
        ops.squared_norms([*small, large])
        weights, moments = [torch.randn(size)], [torch.zeros(size)]
        ops.masked_sgd_(weights, small[:1], moments, ops.sgd_scalars(lr=0.1, momentum=0.9))
        ops.masked_adamw_(weights, small[:1], moments, [torch.zeros(size)], ops.adamw_scalars(1, lr=0.1))
        ops.perturb_(weights, 0.1, 1)
        ops.es_update_(weights, [0.1, 0.2], [1, 2])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("T", "dropout", "norm", "bias", "full"),
    [
        (300, 0.0, "rms", False, False),
        (300, 0.1, "layer", True, True),
        (2501, 0.0, "layer", True, False),
        (2501, 0.1, "rms", False, True),
        (4501, 0.1, "none", True, False),
        (2600, 0.0, "none", False, True),
    ],
)
def test_the_formulas_are_exact(
    T: int, dropout: float, norm: str, bias: bool, full: bool, threads: int, dtype: torch.dtype
) -> None:
    torch.set_num_threads(threads)
    assert_exact(run_all(T, dtype, dropout, norm, bias, full))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("T", "softcap", "heads", "active"), [(300, None, K, 2), (301, 5.0, H, 1), (2050, None, 1, 3)])
def test_the_formulas_of_sparse_ops_are_exact(
    T: int, softcap: float | None, heads: int, active: int, threads: int, dtype: torch.dtype
) -> None:
    torch.set_num_threads(threads)
    assert_exact(run_sparse(T, dtype, softcap, heads, active))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_formulas_of_updates_are_exact(dtype: torch.dtype) -> None:
    assert_exact(run_updates(300, dtype))


def assert_exact(found: Compare) -> None:
    wrong = [row for row in found.rows if abs(row[1] - row[2]) > 8]  # 8: a scalar that a check reads
    assert not wrong


def test_every_formula_is_measured() -> None:
    found = [run_all(300, torch.float32, 0.0, "rms", False, False), run_sparse(300, torch.float32, None, K, 2)]
    found.append(run_updates(300, torch.float32))
    names = {name.removeprefix("longspan::") for run in found for name, _, _ in run.rows}
    assert names >= set(SCRATCH)


def test_every_op_has_a_formula_or_takes_none() -> None:
    assert set(REGISTERED) == set(SCRATCH) | WITHOUT


def test_cuda_has_estimates_without_a_gpu() -> None:
    q, kv = torch.empty(1, H, 4096, 64, device="meta"), torch.empty(1, K, 4096, 64, device="meta")
    rest = (None, None, None, "s2", True, 1024, 0, 4, 0, 0, 1.0, 0.0)
    gpu, cpu = (
        scratch_bytes("longspan::attention_fwd", (q, kv, kv, *rest), Machine(d, 2, 64)) for d in ("cuda", "cpu")
    )
    assert 0 < gpu < cpu


def test_other_ops_take_nothing() -> None:
    assert scratch_bytes("aten::mm", (), Machine()) == 0
