"""Write what a run trained as a plain transformers checkpoint that needs nothing of longspan or PEFT."""

from __future__ import annotations

from pathlib import Path

import torch

from longspan import adapters, folders
from longspan.recipe import Recipe
from longspan.train import checkpoint, weights
from longspan.train.model import load_model, quiet, resolve_dtype
from longspan.train.run import FINAL


def merge(run: str | Path, out: str | Path, *, cache_dir: str | Path | None = None, overwrite: bool = False) -> Path:
    """Merge a run into the folder `out` and return it: weights, config (stretched positions included),
    tokenizer.

    run: a run's folder (its final weights, else its newest good checkpoint), or a checkpoint's folder.
    Adapters are added to the base weights in float32 and rounded once to the recipe's dtype; trained
    embeddings and norms replace the base's. The folder appears whole or not at all.

    Raises FileNotFoundError (nothing to merge, base model not found), FileExistsError (`out` exists and
    `overwrite` is not set), ValueError naming a trained tensor that the run's files lack or a file that is
    damaged.
    """
    folder = trained_folder(Path(run).expanduser())
    target = Path(out).expanduser()
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; choose another folder or pass overwrite=True")
    recipe = Recipe.from_yaml(folder / checkpoint.RECIPE)
    positions = None if recipe.positions.method == "none" else recipe.positions
    model, tokenizer = load_model(recipe.model, torch.float32, positions=positions, cache_dir=cache_dir)
    model = weights.attach(model, recipe)
    weights.load(model, folder, recipe)
    if recipe.adapter.method != "none":
        model = adapters.merge(model)
    model = model.to(resolve_dtype(recipe.dtype))
    about = {"kind": "model", "merged_from": folder.name, "base": recipe.model}
    with folders.staged(target, about=about, replace=overwrite) as staging, quiet():
        model.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
    return target


def trained_folder(run: Path) -> Path:
    """The folder of trained tensors that `run` means, verified against its manifest."""
    if not run.is_dir():
        raise FileNotFoundError(f"{run} is not a folder; give a run's or a checkpoint's folder")
    for folder in (run / FINAL, run):
        if (folder / folders.MANIFEST).is_file():
            folders.verify(folder)
            return folder
    if checkpoint.list_all(run):
        return checkpoint.newest_good(run)[0]
    raise FileNotFoundError(f"{run} holds no finished run and no checkpoint; train first")
