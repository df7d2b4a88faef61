"""Attention over kept keys and over small listed tiles: what the dense reference gives with that mask, and laws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from longspan.memory import measure
from longspan.ops import AttentionPattern, TokenLayout, attention, topl_threshold
from tests.laws import BACKWARD, FORWARD, assert_error_bound, assert_threads_change_no_bit, opcheck
from tests.ops.attention_cases import assert_same_bits, inputs, oracle, ours, torchs
from tests.ops.pq_cases import CHOICES, Choice, Problem

F32, F64, BF16 = torch.float32, torch.float64, torch.bfloat16
FACTORS = {"out": FORWARD, "lse": FORWARD, "dq": BACKWARD, "dk": BACKWARD, "dv": BACKWARD}
# Those whose tensors have keys and values of the codes' own.
NAMES = [name for name in CHOICES if name != "no rows"]


def assert_right(
    label: str, tensors: tuple[Tensor, ...], pattern: AttentionPattern, **options: Any
) -> dict[str, Tensor]:
    found = ours(tensors, pattern, **options)
    exact, rounded = oracle(tensors, F64, pattern, **options), torchs(tensors, pattern, **options)
    for name, value in found.items():
        assert_error_bound(f"{label} {name}", value, rounded[name], exact[name], FACTORS[name])
    return found


def problem_of(choice: Choice, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], AttentionPattern, dict[str, Any]]:
    """q, k and v, the pattern of what is kept, and what attention is told beside it."""
    q, k, _ = choice.problem.tensors(dtype)
    v = torch.randn(k.shape, generator=torch.Generator().manual_seed(9), dtype=F64).to(dtype)
    selection, _ = choice.select(dtype)
    options = {"layout": choice.layout(), "model_window": choice.model_window}
    return (q, k, v), AttentionPattern.selected(selection, choice.causal), options


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_kept_keys_are_a_mask(name: str, dtype: torch.dtype) -> None:
    if dtype == F64 and name == "long":
        dtype = F32
    tensors, pattern, options = problem_of(CHOICES[name], dtype)
    assert_right(name, tensors, pattern, **options)


def test_with_a_soft_cap_and_a_scale() -> None:
    tensors, pattern, options = problem_of(CHOICES["adc, window and sinks"], F32)
    assert_right("soft-cap", tensors, pattern, softcap=2.0, scale=0.7, **options)


@pytest.mark.parametrize("scorer", ["adc", "match"])
def test_keeping_all_is_dense_to_the_bit(scorer: str) -> None:
    tensors, pattern, options = problem_of(Choice(Problem(B=1, T=300, D=32), 300, scorer), F32)
    assert_same_bits(ours(tensors, pattern, **options), ours(tensors, AttentionPattern.full()))


def test_the_first_rows_are_dense_ones() -> None:
    budget = 40
    tensors, pattern, _ = problem_of(Choice(Problem(B=1, T=200, D=32), budget), F32)
    sparse, dense = attention(*tensors, pattern), attention(*tensors)
    assert torch.equal(sparse[:, :, :budget], dense[:, :, :budget])
    assert not torch.allclose(sparse[:, :, budget:], dense[:, :, budget:], atol=1e-3)


def test_one_codeword_is_window_attention() -> None:
    tensors, pattern, _ = problem_of(CHOICES["one codeword"], F64)
    window = AttentionPattern.window(CHOICES["one codeword"].budget)
    found, wanted = ours(tensors, pattern), ours(tensors, window)
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])


def test_constant_values_come_out_and_rows_of_the_gradient_add_up_to_zero() -> None:
    (q, k, v), pattern, _ = problem_of(CHOICES["adc"], F64)
    out = attention(q, k, torch.full_like(v, 3.0), pattern)
    torch.testing.assert_close(out, torch.full_like(out, 3.0))
    leaf = k.detach().clone().requires_grad_()
    attention(q, leaf, v, pattern).square().sum().backward()
    # sum_j dA_ij = 0: moving all keys along a direction moves no output.
    direction = torch.randn(16, dtype=F64)
    moved = attention(q, k + direction, v, pattern)
    torch.testing.assert_close(moved, attention(q, k, v, pattern))
    torch.testing.assert_close(leaf.grad.sum(2), torch.zeros_like(leaf.grad.sum(2)), atol=1e-9, rtol=0)


def test_gradcheck_with_the_selection_frozen() -> None:
    tensors, pattern, _ = problem_of(Choice(Problem(B=1, H=2, K=1, T=12, D=4, subspaces=2, groups=1), 4), F64)
    leaves = tuple(x.contiguous().requires_grad_() for x in tensors)
    assert torch.autograd.gradcheck(lambda q, k, v: attention(q, k, v, pattern), leaves)


def test_documents_are_separate_runs_and_padding_is_zero() -> None:
    tensors, pattern, options = problem_of(CHOICES["padding"], F32)
    out = attention(*tensors, pattern, **options)
    assert torch.equal(out[0, :, : CHOICES["padding"].padded], torch.zeros_like(out[0, :, :11]))
    choice = CHOICES["documents"]
    tensors, pattern, options = problem_of(choice, F32)
    together = attention(*tensors, pattern, **options)
    first = 0
    for length in choice.documents:
        rows = slice(first, first + length)
        first += length
        if not length:
            continue
        q, k, v = (x[:, :, rows] for x in tensors)
        who = choice.who(F32)
        selection = topl_threshold(
            who["key_codes"][:, :, rows].contiguous(), choice.budget, q=q, codebook=who["codebook"], window=3, sinks=2
        )
        assert torch.equal(together[:, :, rows], attention(q, k, v, AttentionPattern.selected(selection)))


def test_threads_change_no_bit() -> None:
    tensors, pattern, _ = problem_of(CHOICES["nine heads of three"], F32)
    assert_threads_change_no_bit(lambda: ours(tensors, pattern))


def test_saved_bytes_do_not_depend_on_the_budget() -> None:
    """Beside q, k, v and out: at most N T (4 W + 9) + B K S 4 W."""
    T, H, K, M = 512, 4, 2, 8
    found = {}
    for scorer in ("adc", "match"):
        for budget in (32, 256):
            choice = Choice(Problem(B=1, H=H, K=K, T=T, D=64, subspaces=M), budget, scorer)
            tensors, pattern, _ = problem_of(choice, F32)
            known = {x.untyped_storage()._cdata for x in tensors}
            saved: dict[int, int] = {}

            def pack(x: Tensor, known: set[int] = known, saved: dict[int, int] = saved) -> Tensor:
                storage = x.untyped_storage()
                if storage._cdata not in known:
                    saved[storage._cdata] = storage.nbytes()
                return x

            with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
                out = attention(*(x.requires_grad_() for x in tensors), pattern)
            book = pattern.selection.codebook
            extra = sum(saved.values()) - out.numel() * 4 - (0 if book is None else book.numel() * 4)
            found[scorer, budget] = extra
            assert extra <= H * T * (4 * 1 + 9) + K * T * 4
    assert found["adc", 32] == found["adc", 256]
    assert found["match", 32] == found["match", 256]


def test_nothing_of_the_size_of_pairs_exists() -> None:
    T = 4096
    choice = Choice(Problem(B=1, H=2, K=1, T=T, D=32, subspaces=4, groups=1), 512)
    tensors, pattern, _ = problem_of(choice, F32)
    leaves = [x.requires_grad_() for x in tensors]
    torch.set_num_threads(2)
    with measure() as live:
        attention(*leaves, pattern).sum().backward()
    needed = sum(x.numel() * 4 for x in leaves) + 2 * leaves[0].numel() * 4
    assert live.peak_bytes < 1.6 * needed + (4 << 20)


def test_op_check_and_compile() -> None:
    for name in ("adc, window and sinks", "match"):
        (q, k, v), pattern, _ = problem_of(CHOICES[name], F32)
        s = pattern.selection
        assert s is not None
        spec = (None, None, None, "selected", True, 0, s.window, s.sinks, 0, 0, 0.25, 0.0)
        codes = (s.key_codes, s.query_codes, s.codebook, s.threshold, s.cut, s.subspaces, s.codewords)
        leaves = tuple(x.detach().contiguous().requires_grad_() for x in (q, k, v))
        opcheck(torch.ops.longspan.attention_fwd.default, (*leaves, *spec, *codes))

    def whole(q: Tensor, k: Tensor, v: Tensor, codes: Tensor, codebook: Tensor) -> Tensor:
        selection = topl_threshold(codes, 16, q=q, codebook=codebook, window=2)
        return attention(q, k, v, AttentionPattern.selected(selection))

    choice = CHOICES["adc"]
    who = choice.who(F32)
    (q, k, v), _, _ = problem_of(choice, F32)
    given_ = (q, k, v, who["key_codes"], who["codebook"])
    compiled = torch.compile(whole, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given_), whole(*given_))


def test_a_selection_of_other_tokens_is_refused() -> None:
    (q, k, v), pattern, _ = problem_of(CHOICES["adc"], F32)
    with pytest.raises(ValueError, match="the selection is of queries"):
        attention(q[:, :, :5], k[:, :, :5], v[:, :, :5], pattern)


# ---- listed tiles of 64 ----------------------------------------------------------------------------------------------


def random_table(batch: int, heads: int, tiles: int, share: float, seed: int = 0) -> Tensor:
    """Some of the tiles that causality leaves, the query's own among them: int32 [B, heads, tiles, slots]."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(batch, heads, tiles, tiles, generator=generator) < share
    chosen = (chosen | torch.eye(tiles, dtype=torch.bool)).tril()
    numbers = torch.where(chosen, torch.arange(tiles), tiles).sort(-1).values
    return torch.where(numbers < tiles, numbers, -1).int()


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize(
    ("shape", "batches", "heads", "size"),
    [
        ((2, 4, 2, 300, 32), 2, 2, 64),
        ((2, 4, 2, 300, 32), 1, 4, 64),
        ((1, 3, 3, 257, 20), 1, 1, 128),
        ((2, 9, 3, 200, 64), 2, 3, 64),
        ((1, 2, 1, 64, 16), 1, 1, 64),
        ((1, 2, 2, 700, 16), 1, 2, 192),
    ],
)
def test_small_tiles(
    shape: tuple[int, int, int, int, int], batches: int, heads: int, size: int, dtype: torch.dtype
) -> None:
    tiles = -(-shape[3] // size)
    pattern = AttentionPattern.tiles(random_table(batches, heads, tiles, 0.4), size)
    tensors = inputs(*shape, dtype=dtype)
    assert_right("tiles", tensors, pattern)


def test_small_tiles_with_documents_windows_and_a_soft_cap() -> None:
    layout = TokenLayout.packed(torch.tensor([0, 100, 101, 330]))
    pattern = AttentionPattern.tiles(random_table(1, 2, 6, 0.6), 64)
    assert_right("tiles", inputs(1, 4, 2, 330, 32), pattern, layout=layout, softcap=3.0, model_window=90)


def test_more_keys_than_a_range() -> None:
    """The backward walks keys in ranges of 2048."""
    pattern = AttentionPattern.tiles(random_table(1, 1, 33, 0.1), 64)
    assert_right("tiles", inputs(1, 2, 1, 2100, 16), pattern)


def test_all_tiles_are_dense() -> None:
    tensors = inputs(1, 4, 2, 300, 32)
    table = torch.arange(5, dtype=torch.int32).expand(1, 5, 5).contiguous()
    found = ours(tensors, AttentionPattern.tiles(table, 64))
    for name, value in ours(tensors, AttentionPattern.full()).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_a_row_without_tiles_is_zero() -> None:
    tensors = inputs(1, 2, 1, 130, 16)
    table = torch.tensor([[[-1, -1], [0, -1], [1, 2]]], dtype=torch.int32)
    out, lse = attention(*tensors, AttentionPattern.tiles(table, 64), return_lse=True)
    assert torch.equal(out[:, :, :64], torch.zeros_like(out[:, :, :64]))
    assert torch.isneginf(lse[:, :, :64]).all()


def test_listed_tiles_with_any_number_of_threads() -> None:
    tensors = inputs(2, 4, 2, 500, 32)
    pattern = AttentionPattern.tiles(random_table(2, 2, 8, 0.5), 64)
    assert_threads_change_no_bit(lambda: ours(tensors, pattern))


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.tuples(
        st.integers(1, 2), st.sampled_from([(1, 1), (4, 2), (3, 3)]), st.integers(1, 400), st.integers(1, 40)
    ),
    own=st.sampled_from(["one", "keys", "queries"]),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
def test_any_lists(sizes: tuple[int, tuple[int, int], int, int], own: str, share: float, seed: int) -> None:
    B, (H, K), T, D = sizes
    heads = {"one": 1, "keys": K, "queries": H}[own]
    pattern = AttentionPattern.tiles(random_table(B, heads, -(-T // 64), share, seed), 64)
    assert_right("tiles", inputs(B, H, K, T, D, seed=seed), pattern)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="tile_size is 32; it must be a multiple of 64"):
        AttentionPattern.tiles([[[0]]], 32)
    tensors = inputs(2, 4, 2, 100, 16)
    for table, message in (
        (random_table(1, 3, 2, 1.0), r"4 heads \(or 2, or 1\)"),
        (random_table(3, 1, 2, 1.0), r"covers 3 batch rows"),
        (random_table(1, 1, 1, 1.0), "2 tiles of 64 rows are needed"),
    ):
        with pytest.raises(ValueError, match=message):
            attention(*tensors, AttentionPattern.tiles(table, 64))
