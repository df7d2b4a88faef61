"""What attention keeps and needs: inputs, outputs and gradients, and beside them O(T)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from longspan.memory import measure
from longspan.ops import AttentionPattern, TokenLayout, attention

B, H, K, D = 1, 9, 3, 64
FLOATS_PER_ROW = 2  # O(T) beside the tensors: row sums of the backward, tile bounds, positions
FIXED = 4 << 20  # tiles of two workers, whatever T is


def heads_last(heads: int, tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """[B, heads, T, D] as a projection makes it: a view of [B, T, heads, D] storage."""
    return torch.randn(B, tokens, heads, D, dtype=dtype).transpose(1, 2).requires_grad_()


def formula(tokens: int, dtype: torch.dtype) -> dict[str, int]:
    """Bytes by cause: q, out and their gradients hold H heads, k and v and theirs K heads, lse one float a row."""
    width = dtype.itemsize * B * tokens * D
    lse = B * H * tokens * (8 if dtype == torch.float64 else 4)
    return {
        "inputs": width * (H + 2 * K),
        "outputs": width * H + lse,
        "gradients": width * (H + H + 2 * K),  # of out, q, k and v
    }


@pytest.mark.parametrize(
    ("pattern", "tokens", "dtype"),
    [
        (AttentionPattern.window(1024), 32768, torch.float32),
        (AttentionPattern.s2(group_size=512, sinks=4), 32768, torch.float32),
        (AttentionPattern.full(), 8192, torch.float32),
        (AttentionPattern.window(256), 16384, torch.float64),
    ],
    ids=["window", "s2", "full", "float64"],
)
def test_peak_is_inputs_outputs_and_gradients(pattern: AttentionPattern, tokens: int, dtype: torch.dtype) -> None:
    with measure() as m:
        q, k, v = (heads_last(n, tokens, dtype) for n in (H, K, K))
        out = attention(q, k, v, pattern)
        assert isinstance(out, Tensor)
        dout = torch.ones_like(out)
        torch.autograd.grad(out, (q, k, v), dout)
    predicted = sum(formula(tokens, dtype).values())
    assert predicted <= m.peak_bytes <= predicted + FIXED + linear(tokens, dtype)
    if tokens == 32768:
        assert m.peak_bytes <= 1.02 * predicted, m.peak_bytes / predicted


def linear(tokens: int, dtype: torch.dtype = torch.float32) -> int:
    """The bytes that scratch may grow by over `tokens` tokens."""
    return FLOATS_PER_ROW * (8 if dtype == torch.float64 else 4) * B * H * tokens


def scratch(pattern: AttentionPattern, tokens: int) -> int:
    """Bytes beyond inputs, outputs and gradients."""
    with measure() as m:
        q, k, v = (heads_last(n, tokens) for n in (H, K, K))
        out = attention(q, k, v, pattern)
        assert isinstance(out, Tensor)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))
    return m.peak_bytes - sum(formula(tokens, torch.float32).values())


def test_scratch_grows_at_most_linearly() -> None:
    lengths = (2048, 8192, 16384)
    sizes = [scratch(AttentionPattern.window(128), tokens) for tokens in lengths]
    for i in (1, 2):
        assert sizes[i] - sizes[i - 1] <= linear(lengths[i] - lengths[i - 1]), sizes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_saved_for_backward(dtype: torch.dtype) -> None:
    tokens = 1024
    q, k, v = (heads_last(n, tokens, dtype) for n in (H, K, K))
    layout = TokenLayout.packed(torch.tensor([0, 300, tokens]))
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        saved[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = attention(q, k, v, AttentionPattern.s2(group_size=256), layout=layout)
    assert isinstance(out, Tensor)
    parts = formula(tokens, dtype)
    int32_planes = 2 * tokens * 4  # document and position; queries and keys share them
    assert sum(saved.values()) == parts["inputs"] + parts["outputs"] + int32_planes
    assert out.shape == q.shape
