"""Runs with every way to update: they resume bit for bit, freeze what they say, and learn."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from longspan.train.run import log_of
from longspan.updates import choose_neurons, half_of, neuron_scores, save_neurons
from runs import Stop, StopAfter, assert_continues, assert_same_weights, run_quietly, tensors

Make = Callable[..., dict[str, Any]]
ALL = {"method": "none"}
ADAMW = {"method": "adamw", "lr": 1e-2}
DENSE: dict[str, Any] = {"attention": {"train": {"method": "full"}}}

VARIANTS: dict[str, dict[str, Any]] = {
    "gradient masks of an adapter, components": {
        "update": {
            "engine": ADAMW,
            "transforms": [{"method": "gmt", "keep_ratio": 0.3}, {"method": "component_clip", "max_norm": 0.1}],
        },
        "trainer": {"steps": 6, "accumulate": 2},
    },
    "frozen elements of all weights in bfloat16": {
        "dtype": "bfloat16",
        "adapter": ALL,
        "update": {"engine": ADAMW, "transforms": [{"method": "gmt", "mode": "freeze", "scope": "layer"}]},
    },
    "halves": {"adapter": ALL, "update": {"engine": ADAMW, "transforms": [{"method": "hft", "stage": 2}]}},
    "groups": {
        "adapter": ALL,
        "update": {
            "engine": ADAMW,
            "groups": [
                {"layer_decay": 0.5},
                {"names": "*norm*", "weight_decay": 0.1},
                {"layers": [-1], "reinit": True},
                {"layers": [0], "freeze": True},
            ],
        },
    },
    "slow weights": {
        "update": {"engine": ADAMW, "hooks": [{"method": "ema", "decay": 0.5, "every": 2}]},
        "trainer": {"steps": 6},
    },
    "slow weights in bfloat16": {
        "dtype": "bfloat16",
        "adapter": ALL,
        "update": {"engine": ADAMW, "hooks": [{"method": "ema", "decay": 0.9}]},
    },
    "mezo": DENSE | {"update": {"engine": {"method": "mezo", "lr": 1e-3}}, "trainer": {"steps": 5, "accumulate": 2}},
    "mezo in bfloat16": DENSE
    | {"dtype": "bfloat16", "adapter": ALL, "update": {"engine": {"method": "mezo", "lr": 1e-4}}},
    "evolution": DENSE | {"update": {"engine": {"method": "es", "lr": 1e-2, "sigma": 1e-2, "population": 4}}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_resumed_equals_uninterrupted(name: str, make: Make, cache: Path) -> None:
    variant = {"trainer": {"steps": 5}} | VARIANTS[name]
    whole = run_quietly(make(output="whole", **variant), cache)
    recipe = make(output="broken", **variant)
    with pytest.raises(Stop):
        run_quietly(recipe, cache, callbacks=[StopAfter(4)])
    resumed = run_quietly(recipe, cache, resume=True)
    assert 1 < resumed.first_step <= 4
    assert_continues(whole, resumed)


def changed(result: Any, model: str) -> dict[str, torch.Tensor]:
    """Which elements of the base model's weights a run changed, by name."""
    base = AutoModelForCausalLM.from_pretrained(model)
    now = tensors(result.final)
    return {name: p.detach() != now[name] for name, p in base.named_parameters()}


def test_halves_that_do_not_train_keep_every_bit(make: Make, cache: Path) -> None:
    recipe = make(adapter=ALL, update={"engine": {**ADAMW, "weight_decay": 0.1}, "transforms": [{"method": "hft"}]})
    result = run_quietly(recipe, cache)
    moved = changed(result, recipe["model"])
    trained = half_of(moved, seed=recipe["seed"])
    assert {name for name, each in moved.items() if each.any()} == trained
    assert result.trainable == sum(moved[name].numel() for name in trained)


def test_halves_are_full_fine_tuning_whose_frozen_tensors_have_no_rate(make: Make, cache: Path) -> None:
    names = list(dict(AutoModelForCausalLM.from_pretrained(make()["model"]).named_parameters()))
    frozen = sorted(set(names) - half_of(names, seed=make()["seed"]))
    updates = {
        "halves": {"engine": ADAMW, "transforms": [{"method": "hft"}]},
        "no rate": {"engine": ADAMW, "groups": [{"names": frozen, "lr_scale": 0.0}]},
    }
    for clip in (0.0, 0.05):
        one, other = (
            run_quietly(make(output=f"{name} {clip}", adapter=ALL, update=update, trainer={"clip": clip}), cache)
            for name, update in updates.items()
        )
        if clip == 0:
            assert_same_weights(one.final, other.final)
        else:  # the norm leaves frozen tensors out
            assert one.grad_norms[0] < other.grad_norms[0]
            assert one.losses[-1] != other.losses[-1]


def test_only_chosen_neurons_change(make: Make, cache: Path, tmp_path: Path) -> None:
    probe = run_quietly(make(output="probe", adapter=ALL), cache)
    recipe = make()
    base = AutoModelForCausalLM.from_pretrained(recipe["model"]).state_dict()
    chosen = choose_neurons(neuron_scores(base, tensors(probe.final)), 20)
    path = tmp_path / "neurons.safetensors"
    save_neurons(chosen, path)
    update = {"engine": {**ADAMW, "weight_decay": 0.1}, "transforms": [{"method": "neft", "neurons": str(path)}]}
    result = run_quietly(make(output="neurons", adapter=ALL, update=update), cache)
    for name, moved in changed(result, recipe["model"]).items():
        keep = torch.zeros_like(moved)
        if name in chosen:
            mask = chosen[name].mask.bool()
            keep |= mask[:, None] if chosen[name].kind == "rows" else mask
        assert not (moved & ~keep).any(), name
    assert result.losses[-1] < result.losses[0]


def test_masks_that_keep_everything_are_the_plain_run(make: Make, cache: Path) -> None:
    plain = run_quietly(make(output="plain"), cache)
    for scope in ("tensor", "global"):
        gmt = {"method": "gmt", "keep_ratio": 1.0, "scope": scope}
        masked = run_quietly(make(output=scope, update={"engine": ADAMW, "transforms": [gmt]}), cache)
        assert_same_weights(plain.final, masked.final)
        assert masked.grad_norms == pytest.approx(plain.grad_norms, rel=1e-12)  # groups are added in another order


def test_the_logged_norm_is_that_of_the_masked_gradient(make: Make, cache: Path) -> None:
    norms = {}
    for clip_on in ("masked", "dense"):
        gmt = {"method": "gmt", "keep_ratio": 0.1, "clip_on": clip_on, "exempt": False}
        result = run_quietly(make(output=clip_on, update={"engine": ADAMW, "transforms": [gmt]}), cache)
        norms[clip_on] = result.grad_norms[0]
    plain = run_quietly(make(output="plain"), cache)
    assert norms["dense"] == pytest.approx(plain.grad_norms[0], rel=1e-5)
    assert norms["masked"] < 0.999 * norms["dense"]


def test_groups_scale_rates_and_freeze(make: Make, cache: Path) -> None:
    groups = [{"layer_decay": 0.5}, {"names": ["*embed_tokens*"], "lr_scale": 0.0}, {"layers": [0], "freeze": True}]
    recipe = make(adapter=ALL, update={"engine": {"method": "sgd", "lr": 1e-2}, "groups": groups})
    result = run_quietly(recipe, cache)
    moved = changed(result, recipe["model"])
    for name, each in moved.items():
        assert each.any() != ("layers.0" in name or "embed" in name), name
    assert [line["learning_rate"] for line in log_of(result.output)][1] == pytest.approx(1e-2)


def test_a_reinitialised_layer_begins_anew_from_the_seed(make: Make, cache: Path) -> None:
    runs = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        update = {"engine": {"method": "sgd", "lr": 1e-9}, "groups": [{"names": ["*.1.mlp*"], "reinit": True}]}
        runs.append(run_quietly({**make(output=name, adapter=ALL, update=update), "seed": seed}, cache))
    weights = [tensors(run.final)["model.layers.1.mlp.up_proj.weight"] for run in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    assert float(weights[0].std()) == pytest.approx(0.02, rel=0.1)


def test_slow_weights_are_what_is_saved_and_the_trained_ones_do_not_know(make: Make, cache: Path) -> None:
    plain = run_quietly(make(output="plain", adapter=ALL), cache)
    runs = {}
    for decay in (0.0, 0.5, 1.0):
        update = {"engine": ADAMW, "hooks": [{"method": "ema", "decay": decay}]}
        runs[decay] = run_quietly(make(output=str(decay), adapter=ALL, update=update), cache, evaluate=4)
        assert runs[decay].losses == plain.losses
        checkpoint = runs[decay].output / "checkpoint-4"
        assert torch.equal(
            tensors(plain.final)["model.norm.weight"], load_file(checkpoint / "model.safetensors")["model.norm.weight"]
        )
    assert_same_weights(plain.final, runs[0.0].final)
    base = AutoModelForCausalLM.from_pretrained(make()["model"]).state_dict()
    for name, value in tensors(runs[1.0].final).items():
        assert torch.equal(value, base[name])
    between = tensors(runs[0.5].final)
    assert not torch.equal(between["model.norm.weight"], tensors(plain.final)["model.norm.weight"])
    assert runs[0.5].held_out_after != runs[0.0].held_out_after


def test_mezo_learns_without_a_backward(make: Make, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("a backward pass ran")

    monkeypatch.setattr(torch.Tensor, "backward", refuse)
    update = {"engine": {"method": "mezo", "lr": 2e-3, "samples": 4}}
    trainer = {"steps": 60, "warmup": 0, "schedule": "constant", "save_every": 0, "batch": 4}
    result = run_quietly(make(adapter=ALL, update=update, trainer=trainer, **DENSE), cache, evaluate=True)
    assert result.held_out_after is not None
    assert result.held_out_before is not None
    assert result.held_out_after < result.held_out_before - 0.05
    assert all(norm > 0 for norm in result.grad_norms)


def test_what_does_not_fit_is_named(make: Make, cache: Path) -> None:
    for update, message in (
        (
            {"transforms": [{"method": "hft"}]},
            r"'hft' chooses among the model's own weights; .*adapter: \{method: none\}",
        ),
        ({"groups": [{"layers": [7], "freeze": True}]}, r"update.groups\[0\] names layer 7; the model has 2 layers"),
        ({"groups": [{"names": ["nothing"], "freeze": True}]}, r"update.groups\[0\] \(nothing\) matches no parameter"),
        ({"groups": [{"freeze": True}]}, "no parameter of the model trains"),
    ):
        with pytest.raises(ValueError, match=message):
            run_quietly(make(update={"engine": ADAMW, **update}), cache)
