"""A feed-forward differentiated through some channels: the dense result, the gradient of the stop-gradient formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from longspan.ops import Norm, Projection, glu, mlp_cols, norm_lora_linear
from longspan.ops import activation as activate

F64 = torch.float64
M, C, F = 21, 12, 20


def parts(kind: str, dtype: torch.dtype = F64) -> tuple[list[Projection], Projection, Norm]:
    torch.manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=F64).mul(0.4).to(dtype)

    widths = {"gated": (F, F), "packed": (2 * F,), "plain": (F,)}[kind]
    up = [Projection(draw(n, C), draw(n) if kind != "gated" else None) for n in widths]
    norm = Norm(draw(C) + 1, draw(C), "layer", 1e-5) if kind == "plain" else Norm(draw(C) + 1)
    return up, Projection(draw(C, F), draw(C)), norm


def stopped(x: Tensor, up: list[Projection], down: Projection, norm: Norm, share: float) -> Tensor:
    """By autograd of h' = m h + (1 - m) sg(h)."""
    wide = norm_lora_linear(x, up, norm)
    sides = wide[0].chunk(2, 1) if len(up) == 1 and up[0].weight.shape[0] == 2 * F else wide
    score = nn.functional.gelu(sides[0]).norm(dim=0)
    if len(sides) == 2:
        score = score + sides[1].norm(dim=0)
    kept = torch.zeros(F, dtype=torch.bool)
    kept[score.argsort(descending=True)[: max(1, int(share * F))]] = True
    h = (
        glu(*(side.contiguous() for side in sides), activation="gelu")
        if len(sides) == 2
        else activate(sides[0], "gelu")
    )
    return x + norm_lora_linear(torch.where(kept, h, h.detach()), [down])[0]


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("kind", ["gated", "packed", "plain"])
def test_gradient_of_the_formula(kind: str, share: float) -> None:
    up, down, norm = parts(kind)
    options: dict[str, Any] = {"activation": "gelu", "share": share, "packed": kind == "packed"}
    results = []
    for run in (
        lambda x: mlp_cols(x, up, down, norm, residual=x, **options),
        lambda x: stopped(x, up, down, norm, share),
    ):
        x = torch.randn(M, C, generator=torch.Generator().manual_seed(2), dtype=F64).requires_grad_()
        y = run(x)
        dy = torch.randn(M, C, generator=torch.Generator().manual_seed(3), dtype=F64)
        results.append((y.detach(), torch.autograd.grad(y, x, dy)[0]))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_share_of_norms_that_is_kept(share: float) -> None:
    up, down, norm = parts("gated")
    x, seen = torch.randn(M, C, dtype=F64), []
    mlp_cols(x, up, down, norm, activation="gelu", share=share, residual=x, watch=seen.append)
    gate, wide = norm_lora_linear(x, up, norm)
    scores = nn.functional.gelu(gate).norm(dim=0) + wide.norm(dim=0)
    strongest = scores.sort(descending=True).values[: int(share * F)]
    torch.testing.assert_close(seen, [strongest.sum() / scores.sum()], rtol=1e-12, atol=0)


def test_saved_bytes() -> None:
    up, down, norm = parts("gated")
    x = torch.randn(M, C, dtype=F64, requires_grad=True)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        mlp_cols(x, up, down, norm, activation="silu", share=0.5, residual=x)
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in saved}
    assert sum(storages.values()) == M * (C + 1 + 2 * F // 2) * 8 + F // 2 * 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"share": 0.0}, "share is 0.0"),
        ({"up": []}, "0 projections up"),
        ({"down": Projection(torch.zeros(C, F, dtype=F64, requires_grad=True))}, "trained weights"),
        (
            {"down": Projection(torch.zeros(C, F), None, torch.zeros(2, F), torch.zeros(C, 2))},
            "an adapter",
        ),
        ({"norm": Norm(torch.ones(C, dtype=F64, requires_grad=True))}, "norm's weights require grad"),
    ],
)
def test_bad_input(changes: dict[str, Any], message: str) -> None:
    up, down, norm = parts("gated")
    x = torch.randn(M, C, dtype=F64)
    given = {"up": up, "down": down, "norm": norm, "activation": "silu", "share": 0.5} | changes
    with pytest.raises(ValueError, match=message):
        mlp_cols(x, given.pop("up"), given.pop("down"), given.pop("norm"), residual=x, **given)
