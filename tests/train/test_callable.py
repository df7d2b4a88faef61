"""`longspan.train` is a function to call and a package to import from; importing either is cheap."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import longspan
import longspan.train
from longspan.train.merge import merge
from longspan.train.run import TrainResult, train


def test_the_package_is_callable_and_still_a_package(
    make: Callable[..., dict[str, Any]], cache: Path, tmp_path: Path
) -> None:
    assert longspan.train.train is train
    assert longspan.train.TrainResult is TrainResult
    assert inspect.signature(longspan.train) == inspect.signature(train)
    result = longspan.train(make(trainer={"steps": 1}), progress=False, cache_dir=cache)
    assert isinstance(result, TrainResult)
    assert merge(result.output, tmp_path / "merged") == tmp_path / "merged"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = longspan.train.nothing


def test_importing_the_package_loads_no_framework() -> None:
    code = (
        "import sys, longspan.train; print(callable(longspan.train), "
        "[name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "True []"


def test_a_recipe_may_be_a_mapping_or_a_file(make: Callable[..., dict[str, Any]], cache: Path, tmp_path: Path) -> None:
    recipe = make(trainer={"steps": 1})
    path = tmp_path / "recipe.yaml"
    longspan.Recipe.model_validate(recipe).to_yaml(path)
    first = longspan.train(path, progress=False, cache_dir=cache)
    second = longspan.train(recipe, progress=False, cache_dir=cache, overwrite=True)
    assert first.losses == second.losses
