"""A plan with `memory.offload: cpu`: what stays on the device, and what the host must hold."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from longspan.patch.layers import offload
from longspan.plan import Machine, Subject, choices, predict
from longspan.plan.fake import build
from longspan.plan.ledger import HOST
from longspan.plan.step import dry_run
from longspan.recipe import Recipe
from longspan.train.optimizer import build_optimizer
from measured import peak_of_steps, prepared, sized
from tests.patch.elsewhere import Elsewhere, moved

LENGTH, LONG = 320, 16384
RECOMPUTE = ("none", "mlp", "mlp+qkv", "layer")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offload, "SMALLEST", 1 << 14)


def recipe(recompute: str, moves: str = "cpu", length: int = LENGTH) -> Recipe:
    data, memory = {"length": length, "packing": "none"}, {"recompute": recompute, "offload": moves}
    return Recipe.model_validate({"data": data, "adapter": {"method": "none"}, "memory": memory})


def subject(recompute: str, moves: str = "cpu", *, device: str = "cuda", layers: int = 3) -> Subject:
    """Rows long enough that activations decide where the peak is."""
    config = sized("llama", LONG, num_hidden_layers=layers)[0]
    return Subject(recipe(recompute, moves, LONG), config, build_optimizer, Machine(device, 1, 32))


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_device_and_host_as_in_a_real_step(recompute: str) -> None:
    """With the host played by memory that torch does not count."""
    asked = recipe(recompute)
    config, model_class = sized("llama", LENGTH)
    moments = dry_run(build(asked, config, patched=True), asked, build_optimizer, Machine.here())
    predicted = max(sum(parts.values()) - parts[HOST] for parts in moments.values())
    torch.manual_seed(0)
    mover = Elsewhere()
    model: Any = moved(prepared(model_class(config), asked), mover)
    assert predicted == pytest.approx(peak_of_steps(model, asked), rel=0.03)
    assert max(parts[HOST] for parts in moments.values()) == pytest.approx(mover.peak, rel=0.01)


@pytest.mark.parametrize("recompute", RECOMPUTE)
def test_layers_save_nothing_on_the_device(recompute: str) -> None:
    """Deeper models hold more weights and more on the host, and no more saved activations."""
    shallow, deep = (predict(subject(recompute, layers=layers)) for layers in (5, 9))
    here = [predict(subject(recompute, "none", layers=layers)).saved for layers in (5, 9)]
    assert deep.host - shallow.host == pytest.approx(here[1] - here[0], rel=0.02)
    assert deep.saved - shallow.saved < 0.02 * (here[1] - here[0])
    assert sum(deep.parts.values()) == deep.peak


def test_two_depths_tell_any_other() -> None:
    asked = subject("mlp", layers=9)
    whole, two = predict(asked, extrapolate=False), predict(asked)
    assert (two.peak, two.host) == (whole.peak, whole.host)


def test_it_needs_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"memory\.offload cpu .* from a GPU .* runs on cpu"):
        predict(subject("none", device="cpu"))


def test_choices_name_it_where_there_is_a_gpu() -> None:
    names = {
        device: [one.name for one in choices(subject("none", "none", device=device))] for device in ("cpu", "cuda")
    }
    assert "memory.offload: cpu" in names["cuda"]
    assert not any("offload" in name for name in names["cpu"])
