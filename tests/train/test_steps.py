"""Laws of a step: accumulation equals one large batch, the mean is over labels, bfloat16 loses no small step."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from longspan import data
from longspan.recipe import Recipe
from longspan.train.optimizer import MasterWeights, build_optimizer
from longspan.train.run import log_of
from longspan.train.sampler import RunSampler
from runs import run_quietly, tensors

Make = Callable[..., dict[str, Any]]


class Gradients(TrainerCallback):
    """Keeps the gradients of every step, as the step is given them; it clips by itself."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({name: one.grad.clone() for name, one in named if one.grad is not None})


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Rows with very different numbers of labels, so that a mean of means is not the mean."""
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": "question " * (1 + n % 3), "completion": "yes " * (1 + 5 * (n % 2))} for n in range(16)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _plain(prompts: Path, **trainer: Any) -> dict[str, Any]:
    return {
        "data": {
            "train": str(prompts),
            "format": "prompt_completion",
            "length": 64,
            "packing": "none",
            "held_out": 0.0,
        },
        "adapter": {"method": "lora", "rank": 2, "also_train": ["embeddings", "norms"]},
        "trainer": {"steps": 3, "save_every": 0, "clip": 0.5, **trainer},
    }


def test_accumulation_equals_one_large_batch(make: Make, cache: Path, prompts: Path) -> None:
    seen = {}
    for name, trainer in {
        "one": {"batch": 4},
        "many": {"accumulate": 4},
        "some": {"batch": 2, "accumulate": 2},
    }.items():
        gradients = Gradients()
        result = run_quietly(make(output=name, **_plain(prompts, **trainer)), cache, callbacks=[gradients])
        seen[name] = result, gradients.steps
    one, steps = seen.pop("one")
    for result, others in seen.values():
        assert result.losses == pytest.approx(one.losses, rel=1e-5)
        assert result.grad_norms == pytest.approx(one.grad_norms, rel=1e-4)
        for left, right in zip(steps, others, strict=True):
            assert left.keys() == right.keys()
            for name, gradient in left.items():
                torch.testing.assert_close(right[name], gradient, rtol=1e-3, atol=1e-6)


def test_the_loss_is_the_mean_over_labels_of_plain_transformers(make: Make, cache: Path, prompts: Path) -> None:
    recipe = make(**_plain(prompts, accumulate=3, batch=2), attention={"train": {"method": "full"}})
    result = run_quietly(recipe, cache)
    tokenizer = AutoTokenizer.from_pretrained(recipe["model"])
    model = AutoModelForCausalLM.from_pretrained(recipe["model"])
    rows = data.build(Recipe.model_validate(recipe).data, tokenizer, 3, cache_dir=cache).train
    total, count = 0.0, 0
    for index in range(6):
        row = rows[index]
        assert len(row["doc_lengths"]) == 1
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"][1:])
        total += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
        count += int((labels != -100).sum())
    assert result.losses[0] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize("adapter", [{"method": "none"}, {"method": "lora", "rank": 4, "also_train": ["embeddings"]}])
def test_bfloat16_trains_and_saves_bfloat16(adapter: dict[str, Any], make: Make, cache: Path) -> None:
    recipe = make(dtype="bfloat16", adapter=adapter, trainer={"steps": 12, "accumulate": 2, "save_every": 0})
    result = run_quietly(recipe, cache)
    assert result.losses[-1] < result.losses[0] - 0.5
    assert all(tensor.dtype == torch.bfloat16 for tensor in tensors(result.final).values())
    exact = run_quietly({**recipe, "dtype": "float32"}, cache, overwrite=True)
    assert result.losses == pytest.approx(exact.losses, rel=0.03)


def _optimizer(weight: nn.Parameter, **engine: Any) -> Any:
    recipe = Recipe.model_validate({"update": {"engine": engine}, "trainer": {"clip": 0.0}})
    return build_optimizer(recipe, nn.ParameterList([weight]))


def test_steps_below_bfloat16_resolution_add_up() -> None:
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = _optimizer(weight, method="sgd", lr=1e-3)
    assert isinstance(optimizer, MasterWeights)
    for _ in range(32):
        weight.sum().backward()
        optimizer.step()
    # One step of 0.001 rounds away at 1.0 in bfloat16 (spacing 0.0039 below 1); 32 of them are 0.032.
    torch.testing.assert_close(weight.detach().float(), torch.full((4,), 0.968), rtol=0, atol=2e-3)


def test_masters_accumulate_gradients_in_float32() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
    optimizer = _optimizer(weight, method="sgd", lr=1.0)
    assert isinstance(optimizer, MasterWeights)
    for scale in (256.0, 1.0, 1.0):
        (weight * scale).sum().backward()
        assert weight.grad is None
    # bfloat16 would give 256: its spacing there is 2.
    assert optimizer.masters[0].grad is not None
    assert float(optimizer.masters[0].grad) == 258.0


def test_masters_refuse_a_state_of_other_shapes() -> None:
    one, other = (_optimizer(nn.Parameter(torch.ones(n, dtype=torch.bfloat16)), method="adamw") for n in (4, 5))
    with pytest.raises(ValueError, match="float32 copies"):
        other.load_state_dict(one.state_dict())


def test_float32_gives_the_plain_optimizers_with_the_recipes_numbers() -> None:
    weight = nn.Parameter(torch.ones(4))
    engine = {"method": "adamw", "lr": 0.1, "betas": [0.5, 0.75], "eps": 1e-3, "weight_decay": 0.25}
    group = _optimizer(weight, **engine).param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.1, (0.5, 0.75), 1e-3, 0.25)
    group = _optimizer(weight, method="sgd", lr=0.1, momentum=0.5, weight_decay=0.25).param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.1, 0.5, 0.25)
    with pytest.raises(ValueError, match="no parameter of the model trains"):
        _optimizer(nn.Parameter(torch.ones(1), requires_grad=False), **engine)


def test_recomputing_layers_changes_no_loss(make: Make, cache: Path) -> None:
    kept = run_quietly(make(output="kept"), cache)
    again = run_quietly(make(output="again", memory={"recompute": "layer"}), cache)
    assert again.losses == pytest.approx(kept.losses, rel=1e-5)


@pytest.mark.parametrize("scale", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_the_run_before_the_weights_change(
    scale: float, make: Make, cache: Path
) -> None:
    class Spoil(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                last_norm = [p for name, p in kwargs["model"].named_parameters() if name.endswith("norm.weight")][-1]
                with torch.no_grad():
                    last_norm.mul_(scale)

    recipe = make()
    with pytest.raises(FloatingPointError, match="at step 3"):
        run_quietly(recipe, cache, callbacks=[Spoil()])
    run = Path(recipe["trainer"]["output"])
    assert (run / "checkpoint-2").is_dir()
    assert not (run / "checkpoint-3").exists()


class Moves(TrainerCallback):
    """Keeps how far the trained weights moved in each step."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self._before: list[torch.Tensor] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._before = [p.detach().clone() for p in kwargs["model"].parameters() if p.requires_grad]

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        now = [p for p in kwargs["model"].parameters() if p.requires_grad]
        moved = [torch.linalg.vector_norm(p - old) for p, old in zip(now, self._before, strict=True)]
        self.lengths.append(float(torch.stack(moved).norm()))


def test_clip_schedule_and_warmup_follow_the_recipe(make: Make, cache: Path) -> None:
    trainer = {"steps": 6, "schedule": "linear", "warmup": 2, "clip": 0.01}
    recipe = make(trainer=trainer, update={"engine": {"method": "sgd", "lr": 1.0}})
    moves = Moves()
    result = run_quietly(recipe, cache, callbacks=[moves])
    rates = [line["learning_rate"] for line in log_of(result.output)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.75, 0.5, 0.25])
    assert min(result.grad_norms) > 0.01
    assert moves.lengths == pytest.approx([0.01 * rate for rate in rates], rel=1e-2)


def test_row_order_is_a_permutation_per_pass_and_independent_of_the_length() -> None:
    long = list(RunSampler(7, 30, seed=5))
    assert long[:7] == list(range(7))
    for start in range(0, 28, 7):
        assert sorted(long[start : start + 7]) == list(range(7))
    assert len({tuple(long[start : start + 7]) for start in range(0, 28, 7)}) == 4
    assert list(RunSampler(7, 11, seed=5)) == long[:11]
    assert list(RunSampler(7, 30, seed=6)) != long
    with pytest.raises(ValueError, match="no rows"):
        RunSampler(0, 3, seed=0)
