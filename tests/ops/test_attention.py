"""The attention op against the dense float64 reference: error bound, gradients, schema, compilation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.ops import AttentionPattern, TokenLayout, attention
from tests.laws import BACKWARD, FORWARD, assert_error_bound, opcheck
from tests.ops.attention_cases import by_row_sums, inputs, oracle, ours, torchs

P = AttentionPattern
DTYPES = (torch.float32, torch.float64, torch.bfloat16)

# name: (shape B H K T D, S or None, pattern, keyword arguments)
CASES = {
    "causal": ((2, 6, 2, 300, 64), None, P.full(), {}),
    "bidirectional": ((1, 2, 2, 70, 32), None, P.full(causal=False), {}),
    "one token": ((1, 3, 1, 1, 64), None, P.full(), {}),
    "no token": ((1, 3, 1, 0, 64), None, P.full(), {}),
    "D 1": ((1, 2, 1, 65, 1), None, P.full(), {}),
    "D 80": ((1, 4, 4, 257, 80), None, P.window(100, sinks=3), {}),
    "D 256": ((1, 2, 1, 129, 256), None, P.full(), {}),
    "s2 odd heads": ((1, 5, 1, 333, 40), None, P.s2(group_size=64), {}),
    "s2 sinks": ((2, 9, 3, 1030, 64), None, P.s2(group_size=256, sinks=4), {}),
    "group over length": ((1, 4, 2, 90, 16), None, P.s2(group_size=512), {}),
    "window": ((1, 2, 2, 1100, 32), None, P.window(300), {}),
    "window one": ((1, 2, 1, 130, 16), None, P.window(1), {}),
    "model window": ((1, 4, 2, 700, 32), None, P.s2(group_size=128, sinks=2), {"model_window": 90}),
    "soft-cap": ((1, 4, 2, 300, 48), None, P.full(), {"softcap": 5.0}),
    "soft-cap scale": ((1, 2, 2, 70, 64), None, P.window(20), {"softcap": 30.0, "scale": 0.3}),
    "packed": (
        (1, 4, 2, 700, 32),
        None,
        P.s2(group_size=128, sinks=1),
        {"layout": TokenLayout.packed(torch.tensor([0, 0, 3, 260, 261, 700]))},
    ),
    "padded": (
        (2, 4, 2, 80, 32),
        None,
        P.full(),
        {"layout": TokenLayout.padded(torch.tensor([[0] * 30 + [1] * 50, [1] * 75 + [0] * 5]))},
    ),
    "all padding": ((2, 2, 1, 40, 16), None, P.full(), {"layout": TokenLayout.padded(torch.zeros(2, 40))}),
    "cache": ((1, 4, 2, 33, 64), 300, P.full(), {"layout": TokenLayout.cached(267, 33)}),
    "decode": ((2, 4, 1, 1, 64), 513, P.window(100, sinks=4), {"layout": TokenLayout.cached(512, 1)}),
    "global": (
        (1, 4, 2, 400, 32),
        None,
        P.window(40),
        {"layout": TokenLayout.packed(torch.tensor([0, 400])).with_global(torch.arange(400)[None] % 97 == 5)},
    ),
    "kept rows": (
        (1, 4, 2, 200, 32),
        None,
        P.s2(group_size=64),
        {"layout": TokenLayout.rows(TokenLayout.packed(torch.tensor([0, 250, 600])), torch.arange(0, 600, 3))},
    ),
    "tiles": ((1, 2, 1, 600, 32), None, P.tiles([[[0], [0, 1], [2]], [[0], [1], [0, 1, 2]]]), {}),
    "tiles 512": ((1, 2, 2, 1100, 16), None, P.tiles([[[0], [1], [0, 2]]], tile_size=512), {}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_error_bound(name: str, dtype: torch.dtype) -> None:
    (B, H, K, T, D), S, pattern, kwargs = CASES[name]
    tensors = inputs(B, H, K, T, D, S, dtype)
    got = ours(tensors, pattern, **kwargs)
    exact = oracle(tensors, torch.float64, pattern, **kwargs)
    rounded = torchs(tensors, pattern, **kwargs)
    for key, value in got.items():
        factor = FORWARD if key in ("out", "lse") else BACKWARD
        assert_error_bound(f"{name} {key}", value, rounded[key], exact[key], factor)


@st.composite
def problems(draw: st.DrawFn) -> tuple:
    """Any shape, pattern and packing that the op accepts, small enough for the dense oracle."""
    K = draw(st.integers(1, 3))
    H = K * draw(st.integers(1, 3))
    T = draw(st.one_of(st.integers(0, 5), st.integers(6, 400), st.sampled_from([63, 64, 65, 255, 256, 257, 513])))
    D = draw(st.sampled_from([1, 3, 8, 16, 17, 32, 40, 64]))
    pattern = draw(
        st.one_of(
            st.just(P.full()),
            st.just(P.full(causal=False)),
            st.builds(lambda g, s: P.s2(group_size=2 * g, sinks=s), st.integers(1, 150), st.integers(0, 5)),
            st.builds(P.window, st.integers(1, 300), st.integers(0, 5)),
        )
    )
    cuts = draw(st.lists(st.integers(0, T), max_size=4))
    layout = TokenLayout.packed(torch.tensor([0, *sorted(cuts), T])) if draw(st.booleans()) else None
    kwargs = {
        "layout": layout,
        "softcap": draw(st.sampled_from([None, 4.0])),
        "model_window": draw(st.one_of(st.none(), st.integers(1, 300))),
    }
    return draw(st.integers(1, 2)), H, K, T, D, pattern, kwargs


@settings(max_examples=40)
@given(problems())
def test_any_problem(problem: tuple) -> None:
    B, H, K, T, D, pattern, kwargs = problem
    tensors = inputs(B, H, K, T, D)
    got = ours(tensors, pattern, **kwargs)
    exact = oracle(tensors, torch.float64, pattern, **kwargs)
    rounded = by_row_sums(tensors, pattern, **kwargs)
    for key, value in got.items():
        factor = FORWARD if key in ("out", "lse") else BACKWARD
        assert_error_bound(key, value, rounded[key], exact[key], factor, terms=T * H // K)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    "pattern", [P.full(), P.full(causal=False), P.s2(group_size=4, sinks=1), P.window(3)], ids=repr
)
def test_gradcheck(pattern: AttentionPattern, softcap: float | None) -> None:
    tensors = [x.requires_grad_() for x in inputs(2, 4, 2, 9, 5, dtype=torch.float64)]
    layout = TokenLayout.packed(torch.tensor([0, 2, 9]))

    def function(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple:
        return attention(q, k, v, pattern, layout=layout, softcap=softcap, return_lse=True)

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    layout = TokenLayout.packed(torch.tensor([0, 3, 70]))
    spec = (layout.queries, layout.keys, None, "s2", True, 32, 0, 1, 0, 0, 0.5, 3.0)
    tensors = [x.requires_grad_() for x in inputs(1, 4, 2, 70, 16, dtype=dtype)]
    opcheck(torch.ops.longspan.attention_fwd.default, (*tensors, *spec))
    q, k, v = (x.detach() for x in tensors)
    out, lse = torch.ops.longspan.attention_fwd(q, k, v, *spec)
    arguments = (torch.randn_like(out), torch.randn_like(lse), q, k, v, out, lse, *spec)
    opcheck(torch.ops.longspan.attention_bwd.default, arguments)


def test_compiles_whole_once_for_all_lengths() -> None:
    graphs = 0

    def counting(module: torch.fx.GraphModule, example: list) -> torch.fx.GraphModule:
        nonlocal graphs
        graphs += 1
        return module

    @torch.compile(fullgraph=True, dynamic=True, backend=counting)
    def compiled(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return attention(q, k, v, P.s2(group_size=32, sinks=2))

    for T in (40, 64, 100, 257):
        tensors = inputs(1, 4, 2, T, 16)
        assert torch.equal(compiled(*tensors), attention(*tensors, P.s2(group_size=32, sinks=2)))
    assert graphs == 1


def test_compiled_gradients_are_the_same_bits() -> None:
    eager = [x.requires_grad_() for x in inputs(1, 4, 2, 100, 16)]
    traced = [x.detach().clone().requires_grad_() for x in eager]
    pattern = P.window(30, sinks=1)
    attention(*eager, pattern).square().sum().backward()
    torch.compile(lambda *x: attention(*x, pattern).square().sum(), fullgraph=True, backend="aot_eager")(
        *traced
    ).backward()
    for a, b in zip(eager, traced, strict=True):
        assert torch.equal(a.grad, b.grad)


def test_output_storage_is_heads_last() -> None:
    out = attention(*inputs(2, 4, 2, 10, 8))
    assert out.transpose(1, 2).is_contiguous()


def test_wide_offsets() -> None:
    # Batch rows more than 2**31 elements apart: untouched pages of the storage take no memory.
    distance = 2**31 + 64
    storage = torch.empty(distance + 4096)
    q = storage.as_strided((2, 2, 5, 8), (distance, 40, 8, 1))
    k = storage[1024:].as_strided((2, 1, 5, 8), (distance, 40, 8, 1))
    v = storage[2048:].as_strided((2, 1, 5, 8), (distance, 40, 8, 1))
    for x, y in zip((q, k, v), inputs(2, 2, 1, 5, 8), strict=True):
        x.copy_(y)
    compact = tuple(x.clone() for x in (q, k, v))
    assert torch.equal(attention(q, k, v), attention(*compact))
