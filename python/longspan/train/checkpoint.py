"""Checkpoints of a run: written atomically, verified before use, tied to the recipe that made them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from longspan import folders
from longspan.recipe import Recipe, yaml_io

PREFIX = "checkpoint-"
RECIPE = "recipe.yaml"
STATE = "longspan_state.json"

# What a resumed run may set anew: none of it changes the steps that were already made.
MAY_CHANGE = ("trainer.steps", "trainer.output", "trainer.log_every", "trainer.save_every")

# Pickle-based files of Trainer; they are only ever read with weights_only=True.
TORCH_FILES = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth")
SAFE_SUFFIXES = (".safetensors", ".json", ".yaml", ".jinja", ".txt", ".md", ".model")

logger = logging.getLogger(__name__)


def path_for(run: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps lives."""
    return run / f"{PREFIX}{step}"


def list_all(run: Path) -> list[Path]:
    """All checkpoints of a run, good or not, oldest first."""
    found = [path for path in run.glob(f"{PREFIX}*") if path.is_dir() and path.name[len(PREFIX) :].isdigit()]
    return sorted(found, key=step_of)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps made before this checkpoint."""
    return int(checkpoint.name[len(PREFIX) :])


@contextlib.contextmanager
def writing(run: Path, step: int) -> Iterator[Path]:
    """Yield a staging folder that becomes checkpoint `step`; on errors, as `folders.staged`."""
    older = [path.name for path in list_all(run) if step_of(path) != step]
    keep = f"{older[-1]} is untouched: free some space, then resume." if older else "There is no earlier checkpoint."
    about = {"kind": "checkpoint", "step": step}
    with folders.staged(path_for(run, step), about=about, replace=True, keep=keep) as staging:
        yield staging


def rotate(run: Path, step: int, keep: int) -> None:
    """Keep the newest `keep` checkpoints up to `step`; later ones (resumed from before them) stay."""
    for old in [path for path in list_all(run) if step_of(path) <= step][:-keep]:
        folders.discard(old)


def check(checkpoint: Path) -> None:
    """Verify the manifest and that nothing in the folder needs unsafe unpickling.

    Raises BrokenFolderError naming the file.
    """
    manifest = folders.verify(checkpoint)
    for name in (RECIPE, STATE, "trainer_state.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        if name not in manifest["files"]:
            raise folders.BrokenFolderError(f"{checkpoint}: {name} is not part of it, so it cannot be resumed")
    for name in manifest["files"]:
        if name in TORCH_FILES:
            _check_torch_file(checkpoint / name)
        elif not name.endswith(SAFE_SUFFIXES):
            raise folders.BrokenFolderError(f"{checkpoint}: {name} is of a kind that is not loaded (it may hold code)")


def _check_torch_file(path: Path) -> None:
    from transformers.trainer_pt_utils import safe_globals

    try:
        with safe_globals():
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        first = str(error).strip().splitlines()[0]
        raise folders.BrokenFolderError(
            f"{path.parent}: {path.name} is refused by a weights-only load: {first}"
        ) from error


def newest_good(run: Path) -> tuple[Path, list[str]]:
    """The newest checkpoint that passes `check`, and one sentence per newer one that does not (also logged).

    Raises FileNotFoundError if there is no checkpoint, BrokenFolderError naming all if every one is broken.
    """
    broken: list[str] = []
    for path in reversed(list_all(run)):
        try:
            check(path)
        except folders.BrokenFolderError as error:
            broken.append(str(error))
            logger.warning("checkpoint skipped: %s", error)
        else:
            return path, broken
    if broken:
        raise folders.BrokenFolderError(f"no checkpoint in {run} can be used: {'; '.join(broken)}")
    raise FileNotFoundError(f"{run} holds no checkpoint to resume from; start without resume")


def find(resume: bool | str | Path, run: Path) -> tuple[Path, list[str]]:
    """The checkpoint meant by `resume`: True is the newest good one of `run`, else a path."""
    if resume is True:
        return newest_good(run)
    path = Path(str(resume)).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"resume: {path} is not a folder; give a checkpoint folder, a run folder, or True")
    if path.name.startswith(PREFIX) and path.name[len(PREFIX) :].isdigit():
        check(path)
        return path, []
    return newest_good(path)


def check_recipe(checkpoint: Path, recipe: Recipe) -> None:
    """Refuse a checkpoint of another recipe: ValueError listing each differing key, old and new value.

    Keys in MAY_CHANGE may differ.
    """
    before = _flat(yaml_io.read(checkpoint / RECIPE))
    now = _flat(yaml_io.parse(recipe.to_yaml(), "recipe"))
    absent = object()
    differing = [
        f"{key}: {before.get(key, 'absent')!r} -> {now.get(key, 'absent')!r}"
        for key in sorted(before.keys() | now.keys())
        if key not in MAY_CHANGE and before.get(key, absent) != now.get(key, absent)
    ]
    if differing:
        allowed = ", ".join(MAY_CHANGE)
        raise ValueError(
            f"{checkpoint} was made by another recipe ({'; '.join(differing)}). Use the recipe.yaml "
            f"inside it, or start a new run in another folder; on resume only {allowed} may change"
        )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, Mapping) and tree:
        parts = (_flat(value, f"{prefix}.{key}" if prefix else str(key)) for key, value in tree.items())
        return {key: value for part in parts for key, value in part.items()}
    return {prefix: tree}


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What longspan itself keeps beside Trainer's state (a JSON object)."""
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state
