"""Bad input to attention, its patterns and its layouts: each row with the error it gives."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from longspan.ops import AttentionPattern as P
from longspan.ops import TokenLayout, attention
from tests.ops.attention_cases import inputs

Q, K, V = inputs(1, 4, 2, 8, 16)


def _call(q: torch.Tensor = Q, k: torch.Tensor = K, v: torch.Tensor = V, **kwargs: object) -> Callable[[], object]:
    return lambda: attention(q, k, v, **kwargs)


ROWS = {
    "attention: 4 query heads are not a multiple of 3 key/value heads": _call(
        k=torch.zeros(1, 3, 8, 16), v=torch.zeros(1, 3, 8, 16)
    ),
    "attention: q has shape (8, 16); it must be [B, heads, tokens, D]": _call(q=torch.zeros(8, 16)),
    "attention: k has shape (1, 2, 8, 16) but v has (1, 2, 9, 16); they must be equal": _call(
        v=torch.zeros(1, 2, 9, 16)
    ),
    "attention: q (1, 4, 8, 16) and k (1, 2, 8, 8) must agree in batch size and D": _call(
        k=torch.zeros(1, 2, 8, 8), v=torch.zeros(1, 2, 8, 8)
    ),
    "attention: q is torch.float16; allowed: float32, float64, bfloat16": _call(q=Q.half()),
    "attention: k is torch.float64 on cpu but q is torch.float32 on cpu; they must agree": _call(k=K.double()),
    "attention: q has stride 8 along D; it must be 1, call q.contiguous()": _call(
        q=torch.zeros(1, 4, 16, 8).transpose(2, 3)
    ),
    "attention: head dimension D is 300; allowed: 1 to 256": _call(*(torch.zeros(1, 1, 2, 300),) * 3),
    "attention: 8 queries and 9 keys need a layout; for a cache use TokenLayout.cached(1, 8)": _call(
        k=torch.zeros(1, 2, 9, 16), v=torch.zeros(1, 2, 9, 16)
    ),
    "attention: s2(groups=n) has no group size yet; call pattern.resolve(length) once per run": _call(pattern=P.s2(4)),
    "attention: pattern is 'full'; use AttentionPattern.full(), s2(), window(), tiles() or selected()": _call(
        pattern="full"
    ),
    "attention: softcap is -1.0; it must be positive, or None for no cap": _call(softcap=-1.0),
    "attention: model_window is -3; it must be positive and below 2^31, or None for no window": _call(model_window=-3),
    "attention: model_window is 4294967297; it must be positive and below 2^31, or None for no window": _call(
        model_window=2**32 + 1
    ),
    "AttentionPattern.window: size is 4294967297; allowed: 0 to 2^31 - 1, as positions": lambda: P.window(2**32 + 1),
    "AttentionPattern.window: sinks is 2147483648; allowed: 0 to 2^31 - 1, as positions": lambda: P.window(4, 2**31),
    "AttentionPattern.s2: group_size is 4294967298; allowed: 0 to 2^31 - 1, as positions": lambda: P.s2(
        group_size=2**32 + 2
    ),
    "AttentionPattern.s2: group_size is 2147483904; allowed: 0 to 2^31 - 1, as positions": lambda: P.s2(2).resolve(
        2**32 + 2
    ),
    "attention: layout.queries describes 1 rows of 5 tokens; the tensors have 1 rows of 8": _call(
        layout=TokenLayout.packed(torch.tensor([0, 5]))
    ),
    "attention: the tile table covers all batch rows, 3 heads and 1 query tiles; "
    "1 batch rows (or 1), 4 heads (or 2, or 1) and 1 tiles of 256 rows are needed": _call(
        pattern=P.tiles([[[0]], [[0]], [[0]]])
    ),
    "attention: layout.queries is on meta and q on cpu; they must be together": _call(
        layout=TokenLayout.packed(torch.tensor([0, 8])).to("meta")
    ),
    "AttentionPattern.full: causal is 1; allowed: True, False": lambda: P.full(causal=1),
    "AttentionPattern.s2: group_size is 3; it must be an even number of at least 2": lambda: P.s2(group_size=3),
    "AttentionPattern.s2: groups is 0; it must be a positive integer": lambda: P.s2(groups=0),
    "AttentionPattern.s2: give groups or group_size, not both; got groups=None, group_size=None": lambda: P.s2(),
    "AttentionPattern.s2: sinks is -1; it must be 0 or a positive integer": lambda: P.s2(4, sinks=-1),
    "AttentionPattern.window: size is 0; it must be a positive integer": lambda: P.window(0),
    "AttentionPattern.tiles: tile_size is 100; it must be a multiple of 64": lambda: P.tiles([[[0]]], tile_size=100),
    "AttentionPattern.tiles: the tile numbers of a list must increase, with -1 only at its end": lambda: P.tiles(
        torch.tensor([[[1, 0]]])
    ),
    "TokenLayout.packed: cu_seqlens must start at 0 and never decrease; got [0, 5, 3, 8]": lambda: TokenLayout.packed(
        torch.tensor([0, 5, 3, 8])
    ),
    "TokenLayout.packed: cu_seqlens is torch.float32 (2,); it must be int32 or int64 [documents + 1]": (
        lambda: TokenLayout.packed(torch.tensor([0.0, 8.0]))
    ),
    "TokenLayout.padded: mask has shape (4,); it must be [B, T]": lambda: TokenLayout.padded(torch.ones(4)),
    "TokenLayout.cached: past is -1; it must be an integer of at least 0": lambda: TokenLayout.cached(-1, 4),
    "TokenLayout.rows: kept_rows has 1 twice; they must be different from each other": lambda: TokenLayout.rows(
        TokenLayout.packed(torch.tensor([0, 3])), torch.tensor([1, 1])
    ),
    "TokenLayout.rows: kept_rows is torch.bool (3,); it must be int64 [N]": lambda: TokenLayout.rows(
        TokenLayout.packed(torch.tensor([0, 3])), torch.tensor([True, False, True])
    ),
}


@pytest.mark.parametrize("message", ROWS)
def test_error_names_what_was_given_and_allowed(message: str) -> None:
    with pytest.raises(ValueError) as error:
        ROWS[message]()
    assert str(error.value) == message


@pytest.mark.parametrize("T", [0, 1])
def test_shortest_sequences(T: int) -> None:
    q, k, v = inputs(1, 4, 2, T, 16)
    out = attention(q, k, v, P.s2(group_size=8, sinks=1))
    assert out.shape == (1, 4, T, 16)
    assert torch.equal(out, v.repeat_interleave(2, 1))
