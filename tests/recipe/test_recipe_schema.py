"""The recipe: the documented defaults, lossless YAML, overrides, and what it admits not to have."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from longspan.recipe import Recipe, RecipeError

RECIPES = Path(__file__).parents[2] / "recipes"

# The schema as the project documents it.
DOCUMENTED = """
model: demo
dtype: float32
seed: 0
data: {train: demo, held_out: 0.05, format: text, length: 4096, packing: documents}
attention:
  train: {method: full}
  prefill: {method: full}
  decode: {method: full}
tokens: {method: none}
ffn:
  train: {method: dense}
  eval: dense
positions: {method: none}
adapter: {method: lora, rank: 8, alpha: 16, dropout: 0.0, targets: [q_proj, k_proj, v_proj, o_proj], also_train: []}
update:
  engine: {method: adamw, lr: 2.0e-4, betas: [0.9, 0.999], eps: 1.0e-8, weight_decay: 0.0}
  transforms: []
  groups: []
  hooks: []
objective: {method: sft, reduction: token_mean}
lean: {norm: true, mlp: true, rope: true, lora: true, loss: true, keep_logits: false}
memory: {recompute: none, offload: none, budget: null}
trainer: {steps: 100, batch: 1, accumulate: 1, schedule: constant, warmup: 0, clip: 1.0, log_every: 1, save_every: 0,
          output: runs/demo}
"""


def test_the_defaults_are_the_documented_recipe() -> None:
    documented = yaml.safe_load(DOCUMENTED)
    assert yaml.safe_load(Recipe().to_yaml()) == documented
    assert Recipe.model_validate(documented) == Recipe()


floats = st.floats(1e-6, 0.9, allow_nan=False)
recipes = st.fixed_dictionaries(
    {},
    optional={
        "model": st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1),
        "seed": st.integers(0, 2**32 - 1),
        "dtype": st.sampled_from(["float32", "bfloat16"]),
        "data": st.fixed_dictionaries(
            {"length": st.integers(64, 1 << 20)},
            optional={"held_out": floats, "packing": st.sampled_from(["documents", "none"])},
        ),
        "attention": st.fixed_dictionaries(
            {
                "train": st.one_of(
                    st.just({"method": "full"}),
                    st.builds(
                        lambda n, s: {"method": "s2", "groups": n, "sinks": s}, st.integers(1, 8), st.integers(0, 9)
                    ),
                    st.builds(lambda g: {"method": "s2", "group_size": 2 * g}, st.integers(1, 32)),
                    st.builds(lambda n: {"method": "window", "size": n}, st.integers(1, 9999)),
                )
            }
        ),
        "positions": st.builds(lambda f: {"method": "linear", "factor": 1 + f}, floats),
        "adapter": st.one_of(
            st.just({"method": "none"}),
            st.builds(lambda r, d: {"method": "lora", "rank": r, "dropout": d}, st.integers(1, 256), floats),
        ),
        "update": st.builds(lambda lr: {"engine": {"method": "sgd", "lr": lr}}, floats),
    },
)


@given(recipes)
def test_yaml_loses_nothing(given_recipe: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(given_recipe)
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


def test_files_round_trip_and_pickle(tmp_path: Path) -> None:
    recipe = Recipe.model_validate({"attention": {"train": {"method": "s2", "group_size": 128}}, "seed": 7})
    recipe.to_yaml(tmp_path / "new" / "recipe.yaml")
    assert Recipe.from_yaml(tmp_path / "new" / "recipe.yaml") == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["recipe.yaml"]


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("update: {engine: {method: adamw, lr: 2e-4, eps: 1E-8}}\ntrainer: {clip: 1}\n")
    recipe = Recipe.from_yaml(path)
    assert (recipe.update.engine.lr, recipe.update.engine.eps, recipe.trainer.clip) == (2e-4, 1e-8, 1.0)


def test_a_recipe_cannot_be_changed_in_place() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().trainer.steps = 3


def test_replace_checks_like_any_recipe() -> None:
    changed = Recipe().replace({"trainer.steps": 3, "attention.train": {"method": "window", "size": 64}})
    assert changed.trainer.steps == 3
    assert changed.attention.train.method == "window"
    assert Recipe() == Recipe.model_validate({}), "the original is untouched"
    with pytest.raises(RecipeError, match=r"unknown key trainer\.stps; did you mean trainer\.steps\?"):
        Recipe().replace({"trainer.stps": 3})
    with pytest.raises(RecipeError, match=r"unknown key trainr\.steps; there is no section trainr"):
        Recipe().replace({"trainr.steps": 3})


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_recipes_are_valid(path: Path) -> None:
    recipe = Recipe.from_yaml(path)
    assert recipe.trainer.output == f"runs/{path.stem}"


def test_patterns_come_from_the_configured_length() -> None:
    from longspan.ops import AttentionPattern

    def pattern(**train: Any) -> AttentionPattern:
        return Recipe.model_validate({"attention": {"train": train}}).attention.train.pattern(4096)

    assert pattern(method="full") == AttentionPattern.full()
    for groups, size in ((1, 4096), (4, 1024)):
        resolved = pattern(method="s2", groups=groups, sinks=3)
        assert (resolved.group_size, resolved.sinks) == (size, 3)
    assert pattern(method="s2", group_size=1024, sinks=0) == AttentionPattern.s2(group_size=1024, sinks=0)
    assert pattern(method="s2") == pattern(method="s2", groups=4, sinks=4)
    assert pattern(method="window", size=9, sinks=2) == AttentionPattern.window(9, sinks=2)


@pytest.mark.parametrize(
    ("given", "count"),
    [("24GiB", 24 << 30), ("8GB", 8 * 10**9), (" 1.5 mib ", 3 << 19), ("10b", 10), (7, 7), (None, None)],
)
def test_a_budget_is_a_size(given: Any, count: int | None) -> None:
    recipe = Recipe.model_validate({"memory": {"recompute": "auto", "budget": given}})
    assert recipe.memory.budget_bytes == count
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


def test_importing_the_recipe_stays_light() -> None:
    """A recipe is checked before anything heavy loads; torch alone takes longer than the whole command line."""
    code = (
        "import sys; from longspan.recipe import Recipe; Recipe.model_validate({});"
        "print(sorted({'torch', 'transformers', 'peft', 'numpy', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
