"""Bad input to linear maps with adapters: each message, word for word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from longspan.ops import Norm, Projection, lora_linear, norm_lora_linear

X, W, V = torch.zeros(2, 8), torch.zeros(6, 8), torch.zeros(8)
A, B = torch.zeros(3, 8), torch.zeros(6, 3)
P = Projection(W)
INT64 = torch.zeros(2, dtype=torch.int64)


def group(projection: Projection, count: int = 2) -> Any:
    """A group whose last projection is the given one."""
    return norm_lora_linear(X, [P] * (count - 1) + [projection])


BAD: dict[str, Callable[[], Any]] = {
    "lora_linear: x has shape (); it must be [..., C] with C at least 1": lambda: lora_linear(torch.zeros(()), W),
    "norm_lora_linear: x has shape (2, 0); it must be [..., C] with C at least 1": lambda: norm_lora_linear(
        X[:, :0], [P]
    ),
    "lora_linear: x is torch.int64; allowed: float32, float64, bfloat16": lambda: lora_linear(X.long(), W),
    "lora_linear: x is torch.float16; allowed: float32, float64, bfloat16": lambda: lora_linear(X.half(), W.half()),
    "norm_lora_linear: 0 projections; allowed: 1 to 8": lambda: norm_lora_linear(X, []),
    "norm_lora_linear: 9 projections; allowed: 1 to 8": lambda: group(P, 9),
    "lora_linear: dropout_p is 1.0; it must be at least 0 and below 1": lambda: lora_linear(X, W, dropout_p=1.0),
    "lora_linear: dropout_p is -0.1; it must be at least 0 and below 1": lambda: lora_linear(X, W, dropout_p=-0.1),
    "lora_linear: dropout_p is nan; it must be at least 0 and below 1": lambda: lora_linear(
        X, W, dropout_p=float("nan")
    ),
    "lora_linear: seed is torch.int64 (2,) on cpu; it must be int64 with 1 elements on cpu": lambda: lora_linear(
        X, W, seed=INT64
    ),
    "lora_linear: seed is torch.float32 (1,) on cpu; it must be int64 with 1 elements on cpu": lambda: lora_linear(
        X, W, seed=V[:1]
    ),
    "norm_lora_linear: seed is torch.int64 (1,) on cpu; it must be int64 with 2 elements on cpu": lambda: (
        norm_lora_linear(X, [P, P], seed=INT64[:1])
    ),
    "lora_linear: seed is torch.int64 (1,) on meta; it must be int64 with 1 elements on cpu": lambda: lora_linear(
        X, W, seed=INT64[:1].to("meta")
    ),
    "lora_linear: seed is 0.5; it must be an int of 64 bits, an int64 tensor with 1 elements, or None": lambda: (
        lora_linear(X, W, seed=0.5)  # type: ignore[arg-type]
    ),
    f"lora_linear: seed is {2**63}; it must be an int of 64 bits, an int64 tensor with 1 elements, or None": lambda: (
        lora_linear(X, W, seed=2**63)
    ),
    "norm_lora_linear: seed is 5; it must be an int64 tensor with 2 elements, or None": lambda: norm_lora_linear(
        X,
        [P, P],
        seed=5,  # type: ignore[arg-type]
    ),
    "norm_lora_linear: norm.kind is 'batch'; allowed: rms, layer": lambda: norm_lora_linear(X, [P], Norm(kind="batch")),
    "norm_lora_linear: norm.weight has shape (7,) on cpu; it must be (8,) on cpu": lambda: norm_lora_linear(
        X, [P], Norm(V[:7])
    ),
    "norm_lora_linear: norm.bias has shape (2, 8) on cpu; it must be (8,) on cpu": lambda: norm_lora_linear(
        X, [P], Norm(V, X)
    ),
    "norm_lora_linear: norm.weight has shape (8,) on meta; it must be (8,) on cpu": lambda: norm_lora_linear(
        X, [P], Norm(V.to("meta"))
    ),
    "norm_lora_linear: norm.weight is torch.float64; allowed: torch.float32": lambda: norm_lora_linear(
        X, [P], Norm(V.double())
    ),
    "norm_lora_linear: norm.bias is torch.float64; allowed: torch.bfloat16, torch.float32": lambda: norm_lora_linear(
        X.bfloat16(), [P], Norm(None, V.double())
    ),
    "norm_lora_linear: norm.weight is torch.float32 and norm.bias is torch.bfloat16; they must agree": lambda: (
        norm_lora_linear(X.bfloat16(), [P], Norm(V, V.bfloat16()))
    ),
    "norm_lora_linear: norm.eps is -1.0; it must be finite and not negative": lambda: norm_lora_linear(
        X, [P], Norm(eps=-1.0)
    ),
    "norm_lora_linear: norm.weight_offset is inf; it must be finite": lambda: norm_lora_linear(
        X, [P], Norm(V, weight_offset=float("inf"))
    ),
    "lora_linear: weight has shape (6, 7); it must be [N,8]": lambda: lora_linear(X, W[:, :7]),
    "norm_lora_linear: projection 1: weight has shape (8,); it must be [N,8]": lambda: group(Projection(V)),
    "lora_linear: weight is torch.bfloat16 (6, 8) on cpu; it must be torch.float32 (6, 8) on cpu": lambda: lora_linear(
        X, W.bfloat16()
    ),
    "lora_linear: bias is torch.float32 (8,) on cpu; it must be torch.float32 (6,) on cpu": lambda: lora_linear(
        X, W, V
    ),
    "lora_linear: residual is torch.float32 (2, 8) on cpu; it must be torch.float32 (2, 6) on cpu": lambda: lora_linear(
        X, W, residual=X
    ),
    "norm_lora_linear: projection 2: residual is torch.float32 (6,) on cpu; it must be torch.float32 (2, 6) on cpu": (
        lambda: group(Projection(W, residual=V[:6]), 3)
    ),
    "lora_linear: lora_a and lora_b go together; give both or none": lambda: lora_linear(X, W, lora_a=A),
    "norm_lora_linear: projection 1: lora_a and lora_b go together; give both or none": lambda: group(
        Projection(W, lora_b=B)
    ),
    "lora_linear: lora_a has shape (8,); it must be [R,8], R 1 to 256": lambda: lora_linear(X, W, None, V, B),
    "lora_linear: lora_a has shape (0, 8); it must be [R,8], R 1 to 256": lambda: lora_linear(X, W, None, A[:0], B),
    "lora_linear: lora_a has shape (257, 8); it must be [R,8], R 1 to 256": lambda: lora_linear(
        X, W, None, torch.zeros(257, 8), torch.zeros(6, 257)
    ),
    "lora_linear: lora_a has shape (3, 7) and lora_b (6, 3); they must be (3, 8) and (6, 3)": lambda: lora_linear(
        X, W, None, A[:, :7], B
    ),
    "lora_linear: lora_a has shape (3, 8) and lora_b (6, 2); they must be (3, 8) and (6, 3)": lambda: lora_linear(
        X, W, None, A, B[:, :2]
    ),
    "lora_linear: lora_b is torch.float64 on cpu; lora_a and lora_b must be of one dtype, torch.float32, on cpu": (
        lambda: lora_linear(X, W, None, A, B.double())
    ),
    "lora_linear: lora_a is torch.float16 on cpu; lora_a and lora_b must be of one dtype, torch.bfloat16 or "
    "torch.float32, on cpu": lambda: lora_linear(X.bfloat16(), W.bfloat16(), None, A.half(), B.half()),
    "lora_linear: lora_b is torch.bfloat16 on cpu; lora_a and lora_b must be of one dtype, torch.bfloat16 or "
    "torch.float32, on cpu": lambda: lora_linear(X.bfloat16(), W.bfloat16(), None, A, B.bfloat16()),
    "lora_linear: lora_a is torch.float32 on meta; lora_a and lora_b must be of one dtype, torch.float32, on cpu": (
        lambda: lora_linear(X, W, None, A.to("meta"), B)
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message: str) -> None:
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert str(error.value) == message
