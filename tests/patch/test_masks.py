"""The O(T) mask object says the same as transformers' dense mask, for any padding, packing, cache and
window.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import masking_utils as hf

from longspan.patch.mask import MaskSpec, spec_mask


def visible(spec: MaskSpec, cu_seqlens: Tensor | None = None, position_ids: Tensor | None = None) -> Tensor:
    """Dense [B, T, S] of what the engine is told: same document, causal, inside the model's window."""
    layout = spec.layout(torch.device("cpu"), cu_seqlens, position_ids)
    if layout is None:
        plane = torch.stack([torch.zeros(spec.q_length), torch.arange(spec.q_length)])[:, None].int()
        queries = keys = plane
    else:
        queries, keys = layout.queries, layout.keys
        assert queries.dtype == keys.dtype == torch.int32
    q_doc, q_pos, k_doc, k_pos = queries[0], queries[1], keys[0], keys[1]
    seen = (q_doc[..., None] == k_doc[:, None]) & (k_doc[:, None] >= 0) & (k_pos[:, None] <= q_pos[..., None])
    if spec.window:
        seen &= q_pos[..., None] - k_pos[:, None] < spec.window
    return seen.expand(spec.batch, -1, -1)


def both(**arguments: Any) -> tuple[MaskSpec, Tensor]:
    """Our object and transformers' dense boolean mask [B, T, S] for one call of a mask function."""
    dense = hf.sdpa_mask(**arguments, allow_is_causal_skip=False)
    spec = spec_mask(**arguments)
    return spec, dense.expand(arguments["batch_size"], 1, -1, -1)[:, 0]


@st.composite
def forwards(draw: st.DrawFn) -> dict[str, Any]:
    """A forward with cached tokens, padding on either side, a static cache and a window."""
    batch = draw(st.integers(1, 3))
    past, new = draw(st.integers(0, 9)), draw(st.integers(1, 9))
    spare = draw(st.integers(0, 4))
    window = draw(st.none() | st.integers(1, 8))
    mask = None
    if draw(st.booleans()):
        mask = torch.ones(batch, past + new, dtype=torch.bool)
        for row in mask:
            pad = draw(st.integers(0, past + new))
            if draw(st.booleans()):
                row[:pad] = False
            else:
                row[past + new - pad :] = False
    function = hf.sliding_window_causal_mask_function(window) if window else hf.causal_mask_function
    offset: int | Tensor = past
    if draw(st.booleans()):
        offset = torch.tensor(past)
    return {
        "batch_size": batch,
        "q_length": new,
        "kv_length": past + new + spare,
        "q_offset": offset,
        "attention_mask": mask,
        "mask_function": function,
        "local_size": window,
    }


@settings(max_examples=150, deadline=None)
@given(forwards())
def test_equals_the_dense_mask(arguments: dict[str, Any]) -> None:
    spec, dense = both(**arguments)
    mask, past, new = arguments["attention_mask"], int(arguments["q_offset"]), arguments["q_length"]
    real = torch.ones(arguments["batch_size"], new, dtype=torch.bool) if mask is None else mask[:, past:]
    given_mask = visible(spec)
    assert torch.equal(given_mask[real], dense[real])
    assert not given_mask[~real].any(), "padding queries see nothing"


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.none() | st.integers(1, 6))
def test_packed_documents(lengths: list[int], window: int | None) -> None:
    """Documents found by transformers, by boundaries or by restarting positions: one result."""
    total = sum(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    plain = hf.sliding_window_causal_mask_function(window) if window else hf.causal_mask_function
    found = hf.find_packed_sequence_indices(positions)
    packed = plain if found is None else hf.packed_sequence_compatibility_function(plain, positions, found)
    sizes = {"batch_size": 1, "q_length": total, "kv_length": total, "local_size": window}
    spec, dense = both(**sizes, mask_function=packed)
    assert torch.equal(visible(spec), dense)
    borders = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    assert torch.equal(visible(spec_mask(**sizes, mask_function=plain), borders), dense)
    assert torch.equal(visible(spec_mask(**sizes, mask_function=plain), None, positions), dense)


def test_holes_are_not_documents() -> None:
    """Masked tokens inside a row, with positions that count over them or not, leave one document."""
    mask = torch.tensor([[1, 1, 0, 1, 1, 0]]).bool()
    sizes = {"batch_size": 1, "q_length": 6, "kv_length": 6, "mask_function": hf.causal_mask_function}
    _, dense = both(**sizes, attention_mask=mask)
    for positions in (torch.arange(6)[None], torch.tensor([[0, 1, 1, 2, 3, 3]])):
        seen = visible(spec_mask(**sizes, attention_mask=mask), None, positions)
        assert torch.equal(seen[mask], dense[mask])


def test_size_is_linear() -> None:
    """Nothing of size T x T is made: a row of a million tokens costs a few arrays of a million."""
    length = 1_000_000
    spec = spec_mask(batch_size=1, q_length=length, kv_length=length, mask_function=hf.causal_mask_function)
    layout = spec.layout(torch.device("cpu"), torch.tensor([0, 10, length], dtype=torch.int32), None)
    assert layout is not None
    assert layout.queries.numel() == 2 * length


def test_layers_share_one_layout() -> None:
    spec = MaskSpec(batch=1, q_length=4, kv_length=4)
    borders = torch.tensor([0, 2, 4])
    first = spec.layout(torch.device("cpu"), borders, None)
    assert spec.layout(torch.device("cpu"), borders, None) is first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"mask_function": hf.bidirectional_mask_function},
            "this model asks for bidirectional attention, which longspan's attention engine does not serve",
        ),
        (
            {"mask_function": hf.chunked_causal_mask_function(4, torch.zeros(1, dtype=torch.long))},
            "this model asks for chunked attention (config.attention_chunk_size), which longspan's attention "
            "engine does not serve",
        ),
        (
            {"mask_function": hf.or_masks(hf.causal_mask_function, hf.bidirectional_mask_function)},
            "this model asks for a mask of its own joined to the causal one (or_mask_function), which longspan's "
            "attention engine does not serve",
        ),
        (
            {"mask_function": hf.causal_mask_function, "use_vmap": True},
            "this model adds a mask function of its own to the causal mask (or_mask_function, and_mask_function); "
            "longspan's attention engine does not serve it",
        ),
    ],
)
def test_refused_masks(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        spec_mask(batch_size=1, q_length=4, kv_length=4, **arguments)
    assert str(caught.value) == message


def test_unknown_mask_function_is_named() -> None:
    def every_other(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return key % 2 == 0

    with pytest.raises(ValueError, match=r"builds its attention mask with .*every_other, which longspan"):
        spec_mask(batch_size=1, q_length=4, kv_length=4, mask_function=every_other)


@pytest.mark.parametrize(
    ("spec", "borders", "positions", "message"),
    [
        (
            {"batch": 2, "q_length": 4, "kv_length": 4},
            [0, 4],
            None,
            "cu_seq_lens_q describes one flattened row, but the batch has 2 rows; flatten it to [1, tokens] "
            "(longspan.data.collate does)",
        ),
        (
            {"batch": 1, "q_length": 4, "kv_length": 4},
            [0, 3, 2, 4],
            None,
            "cu_seq_lens_q must rise from 0 to the 4 tokens of the batch, not [0, 3, 2, 4]",
        ),
        (
            {"batch": 1, "q_length": 4, "kv_length": 4},
            [0, 3],
            None,
            "cu_seq_lens_q must rise from 0 to the 4 tokens of the batch, not [0, 3]",
        ),
        (
            {"batch": 1, "q_length": 4, "kv_length": 4},
            [4],
            None,
            "cu_seq_lens_q must be [documents + 1], not [1]",
        ),
        (
            {"batch": 1, "q_length": 2, "kv_length": 6, "q_offset": 4},
            [0, 2],
            None,
            "packed documents cannot continue a key/value cache: the documents of the cached tokens are not known; "
            "give whole documents without past_key_values",
        ),
        (
            {"batch": 1, "q_length": 3, "kv_length": 7, "q_offset": 4},
            None,
            [[4, 0, 1]],
            "packed documents cannot continue a key/value cache: the documents of the cached tokens are not known; "
            "give whole documents without past_key_values",
        ),
        (
            {"batch": 1, "q_length": 2, "kv_length": 6, "q_offset": 4, "padding": torch.ones(1, 3).bool()},
            None,
            None,
            "attention_mask has 3 columns but 4 tokens are cached and 2 are new; give a mask of 6 columns",
        ),
    ],
)
def test_refused_layouts(spec: dict[str, Any], borders: Any, positions: Any, message: str) -> None:
    cu = None if borders is None else torch.tensor(borders, dtype=torch.int32)
    position_ids = None if positions is None else torch.tensor(positions)
    with pytest.raises(ValueError) as caught:
        MaskSpec(**spec).layout(torch.device("cpu"), cu, position_ids)
    assert str(caught.value) == message
