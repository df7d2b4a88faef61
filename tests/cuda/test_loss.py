"""The CUDA softmax cross-entropy kernel in the CPU emulation, against float64 autograd."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.cuda import simt
from tests.cuda.arrays import bits, tensor
from tests.laws import BACKWARD, FORWARD, assert_error_bound

# name: (rows, V, extra row stride, options)
CASES: dict[str, tuple[int, int, int, dict[str, Any]]] = {
    "plain": (7, 1000, 0, {}),
    "rows off 16 bytes": (5, 1003, 0, {}),
    "stride over V": (3, 513, 7, {}),
    "one column": (4, 1, 3, {}),
    "fewer columns than threads": (4, 33, 0, {}),
    "soft-cap and scale": (5, 700, 0, {"softcap": 3.0, "scale": 0.5}),
    "bias": (5, 700, 0, {"bias": torch.float32}),
    "bias bfloat16": (5, 700, 0, {"bias": torch.bfloat16, "softcap": 5.0}),
    "bias float16": (3, 256, 0, {"bias": torch.float16}),
    "weights of either sign": (6, 300, 0, {"weights": True}),
    "gathered rows": (4, 300, 0, {"gathered": True, "weights": True}),
    "loss only": (4, 300, 0, {"gradient": False}),
}


def problem(name: str) -> tuple[dict[str, Any], Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
    """What the entry is given; logits, labels, weights, bias and the rows' tokens."""
    rows, V, extra, options = CASES[name]
    generator = torch.Generator().manual_seed(len(name))
    logits = 4 * torch.randn(rows, V, generator=generator)
    tokens = 2 * torch.arange(rows) + 1 if options.get("gathered") else torch.arange(rows)
    labels = torch.randint(V, (int(tokens.max()) + 2,), generator=generator)
    labels[tokens[0]] = -100
    weights = torch.randn(len(labels), generator=generator) if options.get("weights") else None
    bias = torch.randn(V, generator=generator).to(options["bias"]) if "bias" in options else None
    given: dict[str, Any] = {
        "logits": torch.nn.functional.pad(logits, (0, extra), value=float("nan")).numpy(),
        "V": V,
        "labels": labels.numpy(),
        "scale": options.get("scale", 1.0),
        "softcap": options.get("softcap", 0.0),
        "gradient": options.get("gradient", True),
        "row_weights": None if weights is None else weights.numpy(),
        "index": tokens.numpy() if options.get("gathered") else None,
        "dtype": str(options.get("bias", torch.float32)).removeprefix("torch."),
        "bias": None,
    }
    if bias is not None:
        given["bias"] = bits(bias)
    return given, logits, labels, weights, bias, tokens


def reference(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Losses of the rows, and the gradient of their sum."""
    given, logits, labels, weights, bias, tokens = problem(name)
    x = logits.to(dtype).requires_grad_()
    z = (x if bias is None else x + bias.to(dtype)) * given["scale"]
    if given["softcap"]:
        z = given["softcap"] * torch.tanh(z / given["softcap"])
    losses = torch.nn.functional.cross_entropy(z, labels[tokens], reduction="none")
    if weights is not None:
        losses = losses * weights[tokens].to(dtype)
    losses.sum().backward()
    assert x.grad is not None
    return losses.detach(), x.grad


@pytest.mark.parametrize("name", CASES)
def test_error_bound_in_every_schedule(name: str) -> None:
    given, logits, _, _, _, tokens = problem(name)
    V = logits.shape[1]
    exact, rounded = reference(name, torch.float64), reference(name, torch.float32)
    first = None
    for seed in range(4):
        result = simt.run("cross_entropy_rows", given, seed=seed)
        assert not result.reports, result.text()
        losses = torch.from_numpy(result["losses"])[tokens]
        assert_error_bound(f"{name} losses", losses, rounded[0], exact[0], FORWARD)
        assert given["gradient"] == ("gradient" in result.outputs)
        outcome = (result["losses"].tobytes(), *(result[n].tobytes() for n in result.outputs if n == "gradient"))
        if given["gradient"]:
            dtype = getattr(torch, given["dtype"])
            gradient = tensor(result["gradient"], dtype)
            assert_error_bound(f"{name} gradient", gradient[:, :V], rounded[1].to(dtype), exact[1], BACKWARD)
            assert gradient[:, V:].isnan().all(), "wrote beyond V"
        first = first or outcome
        assert outcome == first, f"seed {seed} changes bits"


@pytest.mark.parametrize("name", CASES)
def test_no_race_no_bound_no_uninitialised_read(name: str) -> None:
    result = simt.run("cross_entropy_rows", problem(name)[0], build="hooks", seed=1)
    assert not result.reports, result.text()


def test_a_label_out_of_range_gives_nan_in_its_row_only() -> None:
    given, _, labels, _, _, _ = problem("plain")
    bad = labels.clone()
    bad[2] = 1000
    good, result = (simt.run("cross_entropy_rows", given | {"labels": x.numpy()}) for x in (labels, bad))
    assert not result.reports, result.text()
    assert np.isnan(result["losses"][2])
    assert np.isnan(result["gradient"][2]).all()
    others = [i for i in range(7) if i != 2]
    assert np.array_equal(result["gradient"][others], good["gradient"][others])


# number: what is wrong, a case that shows it. The numbers stand at `simt::mutant` in csrc/kernels/loss.
MUTANTS = {
    41: ("sums of other lanes are exchanged wrongly", "plain"),
    42: ("no barrier before the warps' parts are read", "plain"),
    43: ("an ignored label is taken as a label", "plain"),
    44: ("rows off 16 bytes are read four at a time", "rows off 16 bytes"),
    45: ("the label's column keeps its probability", "plain"),
}


@pytest.mark.mutants("loss")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_planted_bug_is_seen(mutant: int) -> None:
    what, name = MUTANTS[mutant]
    result = simt.run("cross_entropy_rows", problem(name)[0], build="hooks", seed=1, mutant=mutant)
    exact, rounded = reference(name, torch.float64), reference(name, torch.float32)
    found = {report.rule for report in result.reports}
    V, tokens = CASES[name][1], problem(name)[5]
    for key, value, i in (
        ("losses", result["losses"][tokens.numpy()], 0),
        ("gradient", result["gradient"][:, :V], 1),  # float32 in all of these cases
    ):
        try:
            assert_error_bound(key, torch.from_numpy(value.copy()), rounded[i], exact[i], BACKWARD)
        except AssertionError:
            found.add(f"wrong {key}")
    assert found, f"nothing noticed: {what}"
