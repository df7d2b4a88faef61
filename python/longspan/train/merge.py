"""Write what a run trained as a plain transformers checkpoint that needs nothing of longspan or PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from longspan import adapters, data, folders
from longspan.ffn import RoutedFeedForward
from longspan.recipe import Recipe
from longspan.train import checkpoint, weights
from longspan.train.evaluate import held_out_loss
from longspan.train.model import load_model, quiet, resolve_dtype
from longspan.train.run import FINAL, prepare


def merge(
    run: str | Path,
    out: str | Path,
    *,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    dense: bool = False,
) -> Path:
    """Merge a run into the folder `out` and return it: weights, config (stretched positions included),
    tokenizer.

    run: a run's folder (its final weights, else its newest good checkpoint), or a checkpoint's folder.
    Adapters are added to the base weights in float32 and rounded once to the recipe's dtype; trained
    embeddings and norms replace the base's. The folder appears whole or not at all. dense: also for a run whose
    feed-forward was routed; what is written computes all blocks, which is another model (see `dense_loss`).

    Raises FileNotFoundError (nothing to merge, base model not found), FileExistsError (`out` exists and `overwrite` is
    not set), ValueError for a routed run without `dense`, and naming a trained tensor that the run's files lack or a
    file that is damaged.
    """
    folder = trained_folder(Path(run).expanduser())
    target = Path(out).expanduser()
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already; choose another folder or pass overwrite=True")
    recipe = Recipe.from_yaml(folder / checkpoint.RECIPE)
    routed = recipe.ffn.train
    if isinstance(routed, RoutedFeedForward) and not dense:
        raise ValueError(
            f"{run} trained with ffn.train: routed ({routed.active} of {routed.blocks} blocks); plain transformers has "
            "no routing, and the merged model would compute all blocks. Pass --dense (dense=True) to write that model "
            "and see its held-out loss"
        )
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


def routed_run(run: str | Path) -> bool:
    """Whether a run trained with a routed feed-forward."""
    return Recipe.from_yaml(trained_folder(Path(run).expanduser()) / checkpoint.RECIPE).ffn.train.method == "routed"


def dense_loss(run: str | Path, merged: Path, *, cache_dir: str | Path | None = None) -> float | None:
    """The held-out loss of what `merge` wrote of a run, on the run's own data; None without held-out rows."""
    recipe = Recipe.from_yaml(trained_folder(Path(run).expanduser()) / checkpoint.RECIPE)
    plain = recipe.replace(
        {
            "model": str(merged),
            "positions": {"method": "none"},
            "adapter": {"method": "none"},
            "ffn": {},
            "attention": {},
        }
        | {"tokens": {"method": "none"}, "memory.recompute": "none"}
    )
    model, tokenizer = prepare(plain, cache_dir=cache_dir)
    size = model.get_input_embeddings().num_embeddings
    held_out: Any = data.build(recipe.data, tokenizer, recipe.seed, vocab_size=size, cache_dir=cache_dir).held_out
    return None if held_out is None else held_out_loss(model, held_out, data.collate)


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
