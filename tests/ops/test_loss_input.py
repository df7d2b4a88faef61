"""Bad input to the segmented loss: each row with the error it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from longspan.ops import segment_linear_cross_entropy

H, W, Y = torch.zeros(3, 4), torch.zeros(10, 4), torch.zeros(3, dtype=torch.int64)


def _call(hidden: Any = H, weight: Any = W, labels: Any = Y, **options: Any) -> Callable[[], object]:
    return lambda: segment_linear_cross_entropy(hidden, weight, labels, **options)


ROWS = {
    "label 10 at row 1 is out of range; allowed: 0 to 9 (V is 10), or ignore_index -100": _call(
        labels=torch.tensor([0, 10, 11])
    ),
    "label -1 at row 2 is out of range; allowed: 0 to 9 (V is 10), or ignore_index -100": _call(
        labels=torch.tensor([0, -100, -1])
    ),
    "label -100 at row 0 is out of range; allowed: 0 to 9 (V is 10), or ignore_index -1": _call(
        labels=torch.tensor([-100, 0, -1]), ignore_index=-1
    ),
    "hidden has shape (3, 4) and weight (10, 5); they must be [..., C] and [V, C]": _call(weight=torch.zeros(10, 5)),
    "hidden has shape (3, 4) and weight (4,); they must be [..., C] and [V, C]": _call(weight=torch.zeros(4)),
    "hidden is torch.float16; allowed: float32, float64, bfloat16": _call(hidden=H.half(), weight=W.half()),
    "weight is torch.float64 on cpu but hidden is torch.float32 on cpu; they must agree": _call(weight=W.double()),
    "bias is torch.bfloat16 on cpu but hidden is torch.float32 on cpu; they must agree": _call(
        bias=torch.zeros(10, dtype=torch.bfloat16)
    ),
    "weight has shape (0, 4); V must be at least 1": _call(weight=torch.zeros(0, 4)),
    "bias has shape (9,); it must be (10,)": _call(bias=torch.zeros(9)),
    "labels is torch.float32; allowed: int64, int32": _call(labels=torch.zeros(3)),
    "labels has shape (2,) on cpu; one label for each row of hidden needs (3,) on cpu": _call(labels=Y[:2]),
    "token_weights is torch.float32 (2,); it must be floating point with the shape of labels, (3,)": _call(
        token_weights=torch.zeros(2)
    ),
    "token_weights is torch.int64 (3,); it must be floating point with the shape of labels, (3,)": _call(
        token_weights=Y
    ),
    "token_weights requires grad but is a constant here; call token_weights.detach()": _call(
        token_weights=torch.zeros(3, requires_grad=True)
    ),
    "segment is 0; it must be at least 1": _call(segment=0),
    "reduction is 'average'; allowed: mean, sum, none": _call(reduction="average"),
    "logit_softcap is 0.0; it must be positive, or None for no cap": _call(logit_softcap=0.0),
    "logit_softcap is inf; it must be positive, or None for no cap": _call(logit_softcap=float("inf")),
    "logit_scale is nan; it must be finite": _call(logit_scale=float("nan")),
    "num_items is 0; it must be positive": _call(num_items=0),
    "num_items has shape (2,); it must hold one number": _call(num_items=torch.ones(2)),
    "num_items divides the mean, but reduction is 'sum'; leave one of them out": _call(num_items=3, reduction="sum"),
}


@pytest.mark.parametrize("message", ROWS)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        ROWS[message]()
    assert str(error.value) == f"segment_linear_cross_entropy: {message}"


def test_a_label_out_of_range_that_python_could_not_read_is_refused_by_the_kernel() -> None:
    compiled = torch.compile(segment_linear_cross_entropy, fullgraph=True, backend="aot_eager")
    assert compiled(H, W, Y) == pytest.approx(2.302585)
    with pytest.raises(Exception, match=r"label 10 at row 2 is out of range; allowed: 0 to 9 \(V is 10\)"):
        compiled(H, W, torch.tensor([0, 1, 10]))
