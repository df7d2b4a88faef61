"""One training run from a recipe: load, stretch positions, attach adapters, patch, read data, train, save."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, set_seed

from longspan import data, folders, updates
from longspan.nn.beside import beside_modules
from longspan.patch.decoder import run_decoder
from longspan.patch.figures import figures_of
from longspan.patch.install import causal_model, patch
from longspan.recipe import Recipe
from longspan.train import checkpoint, memory, planning, weights
from longspan.train.evaluate import held_out_loss
from longspan.train.model import load_model, resolve_dtype
from longspan.train.progress import Progress
from longspan.train.record import LOG, TENSORBOARD, Recorder
from longspan.train.stopping import StoppedError, Stopper
from longspan.train.trainer import LongTrainer

FINAL = "final"


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run gave. Lists have one entry per optimizer step made by this call, from `first_step` on.

    output: the run's folder; final: the trained tensors, tokenizer and recipe in it. losses in nats per
    label, seconds without saving, tokens_per_second over all steps of this call, peak_memory in bytes
    (largest resident set while training, see `longspan.train.memory`), peak_cuda in bytes or None. Held-out
    losses are None unless asked for. resumed_from: the checkpoint's folder or None; broken: one sentence per
    damaged checkpoint that was passed over. recompute: what was computed again, `memory.recompute: auto` settled;
    predicted_peak: live bytes by `longspan.plan`, None where no budget asked for them.
    """

    output: Path
    final: Path
    steps: int
    first_step: int
    losses: list[float]
    grad_norms: list[float]
    seconds: list[float]
    tokens_per_second: float
    peak_memory: int
    peak_cuda: int | None
    trainable: int
    held_out_before: float | None
    held_out_after: float | None
    resumed_from: Path | None
    broken: list[str]
    recompute: str = "none"
    predicted_peak: int | None = None


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    resume: bool | str | Path | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    evaluate: bool | int = False,
    progress: bool = True,
    cache_dir: str | Path | None = None,
    overwrite: bool = False,
    keep_checkpoints: int = 2,
    patched: bool = True,
) -> TrainResult:
    """Train as a recipe (or a mapping, or a recipe file) says and return the figures.

    resume: True continues the newest good checkpoint of the recipe's output folder; a path, that checkpoint
    or the newest of that run. Losses, gradient norms and weights equal those of an uninterrupted run bit for
    bit. callbacks: transformers' TrainerCallback objects. evaluate: score held-out rows before and after, all
    of them or the first n. progress: bar or lines on standard error; nothing else is printed. cache_dir:
    where the demo model is converted and tokens are kept. overwrite: remove an earlier run in the output
    folder. keep_checkpoints: how many stay on disk. patched: False trains the stock Hugging Face model with the same
    data, trainer and trainable tensors, ignoring recipe.attention and recipe.lean: the baseline of a comparison.

    Raises ValueError (recipe, data, a checkpoint of another recipe, an output folder that holds a run),
    FileNotFoundError (model, data, checkpoint), `longspan.folders.BusyError` (another process trains in the folder),
    `longspan.folders.SaveError` (disk full; earlier checkpoints are intact), FloatingPointError (diverged),
    `longspan.train.stopping.StoppedError` (SIGTERM arrived: its step was finished and saved).
    """
    if isinstance(recipe, (str, Path)):
        recipe = Recipe.from_yaml(recipe)
    recipe = Recipe.model_validate(recipe)
    if keep_checkpoints < 1:
        raise ValueError(f"keep_checkpoints is {keep_checkpoints}; at least 1 checkpoint must stay")
    run = Path(recipe.trainer.output).expanduser()
    if run.exists() and not run.is_dir():
        raise ValueError(f"trainer.output {run} is a file; give a folder")
    with folders.locked(run, wait=False, purpose="training"):
        folders.clean_staging(run)
        found, broken = checkpoint.find(resume, run) if resume else (None, [])
        if found is None:
            _start_fresh(run, overwrite=overwrite)
        else:
            _check_resumable(found, recipe)
        return _Run(
            recipe, run, found, broken, evaluate, progress, cache_dir, callbacks, keep_checkpoints, patched
        ).go()


def _start_fresh(run: Path, *, overwrite: bool) -> None:
    earlier = [path for path in [*checkpoint.list_all(run), run / FINAL] if path.exists()]
    if earlier and not overwrite:
        raise ValueError(
            f"{run} holds a run already ({earlier[-1].name}); pass resume=True to continue, overwrite=True "
            "to remove it, or choose another trainer.output"
        )
    for path in [*earlier, *(one for one in [run / TENSORBOARD] if one.exists())]:
        folders.discard(path)
    (run / LOG).unlink(missing_ok=True)


def _check_resumable(found: Path, recipe: Recipe) -> None:
    checkpoint.check_recipe(found, recipe)
    done = checkpoint.step_of(found)
    if done > recipe.trainer.steps:
        raise ValueError(f"{found} has made {done} steps already; trainer.steps is {recipe.trainer.steps}")


@dataclasses.dataclass
class _Run:
    recipe: Recipe
    run: Path
    found: Path | None
    broken: list[str]
    evaluate: bool | int
    progress: bool
    cache_dir: str | Path | None
    callbacks: Sequence[TrainerCallback]
    keep_checkpoints: int
    patched: bool

    def go(self) -> TrainResult:
        recipe, section = self.recipe, self.recipe.trainer
        saved = checkpoint.read_state(self.found) if self.found else {}
        settled = planning.settle(recipe, before=saved.get("memory"), cache_dir=self.cache_dir, patched=self.patched)
        recompute = settled.recipe.memory.recompute
        if settled.predicted_peak is not None:
            memory.return_freed()  # so that a run that is held to a budget needs what was predicted
        model, tokenizer = prepare(settled.recipe, cache_dir=self.cache_dir, patched=self.patched)
        rows, held_out = data.build(
            recipe.data,
            tokenizer,
            recipe.seed,
            vocab_size=model.get_input_embeddings().num_embeddings,
            cache_dir=self.cache_dir,
        )
        if self.evaluate and held_out is None:
            raise ValueError("evaluate needs held-out rows but data.held_out is 0; set a share or a file")
        fingerprint = _fingerprint(rows)
        if saved and saved["data"] != fingerprint:
            raise ValueError(
                f"the training data changed since {self.found} was written: {saved['data']} -> {fingerprint}"
            )
        if saved and saved.get("patched", True) != self.patched:
            raise ValueError(f"{self.found} was written with patched={not self.patched}; resume it the same way")
        if not self.found:
            look(model, rows, recipe)
        before = saved.get("held_out_before")
        if self.evaluate and not self.found:
            before = self._score(model, held_out)

        recorder = Recorder(
            self.run,
            log_every=section.log_every,
            save_every=section.save_every,
            rows_per_step=section.batch * section.accumulate,
            rows=len(rows),
            notes=settled.note(),
            figures=lambda: figures_of(causal_model(model)),
        )
        if self.found:
            recorder.restore(saved["recorder"], checkpoint.step_of(self.found))
        shown = [Progress(recorder)] if self.progress else []
        stopper = Stopper()
        trainer = LongTrainer(
            model,
            recipe,
            run=self.run,
            rows=rows,
            collate=data.collate,
            recorder=recorder,
            callbacks=[*shown, *self.callbacks, stopper],
            keep_checkpoints=self.keep_checkpoints,
            state=lambda: {
                "data": fingerprint,
                "held_out_before": before,
                "patched": self.patched,
                "memory": settled.note(),
            },
            recompute=recompute,
        )
        folders.write_file(self.run / checkpoint.RECIPE, recipe.to_yaml())
        try:
            with stopper.listening():
                trainer.train(resume_from_checkpoint=str(self.found) if self.found else None)
        finally:
            recorder.close()
            for one in shown:
                one.close()
        if stopper.asked and trainer.state.global_step < section.steps:
            raise StoppedError(trainer.state.global_step, checkpoint.list_all(self.run)[-1])
        peak, peak_cuda = recorder.measure_peak(), memory.peak_cuda()
        with trainer.hooks.shown():
            final = self._save_final(trainer, tokenizer)
            after = self._score(model, held_out) if self.evaluate else None
        steps = recorder.steps
        seconds = [one.seconds for one in steps]
        return TrainResult(
            output=self.run,
            final=final,
            steps=trainer.state.global_step,
            first_step=trainer.state.global_step - len(steps) + 1,
            losses=[one.loss for one in steps],
            grad_norms=[one.grad_norm for one in steps],
            seconds=seconds,
            tokens_per_second=sum(one.tokens for one in steps) / sum(seconds) if steps else 0.0,
            peak_memory=peak,
            peak_cuda=peak_cuda,
            trainable=weights.trainable(model),
            held_out_before=before,
            held_out_after=after,
            resumed_from=self.found,
            broken=self.broken,
            recompute=recompute,
            predicted_peak=settled.predicted_peak,
        )

    def _score(self, model: Any, held_out: Any) -> float:
        limit = None if self.evaluate is True else int(self.evaluate)
        return held_out_loss(model, held_out, data.collate, limit=limit)

    def _save_final(self, trainer: LongTrainer, tokenizer: Any) -> Path:
        final = self.run / FINAL
        kept = checkpoint.list_all(self.run)
        keep = f"{kept[-1].name} holds the same weights." if kept else ""
        about = {"kind": "final", "step": trainer.state.global_step}
        with folders.staged(final, about=about, replace=True, keep=keep) as folder:
            trainer.save_model(str(folder), _internal_call=True)
            tokenizer.save_pretrained(folder)
        return final


def prepare(recipe: Recipe, *, cache_dir: str | Path | None = None, patched: bool = True) -> tuple[Any, Any]:
    """Load the recipe's model, stretch its positions, attach adapters and patch it: `(model, tokenizer)`.

    New parameters depend on recipe.seed alone.
    """
    set_seed(recipe.seed)
    positions = None if recipe.positions.method == "none" else recipe.positions
    model, tokenizer = load_model(recipe.model, recipe.dtype, positions=positions, cache_dir=cache_dir)
    model = weights.attach(model, recipe)
    updates.select(model, recipe.update, seed=recipe.seed, all_weights=recipe.adapter.method == "none")
    dtype = resolve_dtype(recipe.dtype)
    for parameter in model.parameters():
        # One dtype in the graph: PEFT makes float32 adapters; precision is kept by the optimizer's masters.
        if parameter.requires_grad and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)
    if patched:
        patch(model, recipe)
    return model, tokenizer


def look(model: Any, rows: Any, recipe: Recipe) -> None:
    """Let methods that begin with what they see (codebooks, routers) see the first rows, before anything else runs."""
    if any(True for _ in beside_modules(model)):
        batch = data.collate([rows[index] for index in range(min(recipe.trainer.batch, len(rows)))])
        was_training = model.training
        model.train()
        try:
            run_decoder(model, batch)
        finally:
            model.train(was_training)


def _fingerprint(rows: Any) -> dict[str, Any]:
    """Enough of the training rows to notice that they changed: their number and a hash of three of them."""
    count = len(rows)
    picked = [rows[index] for index in sorted({0, count // 2, count - 1})] if count else []
    plain = [{key: [int(one) for one in row[key]] for key in sorted(row)} for row in picked]
    return {"rows": count, "sha256": hashlib.sha256(json.dumps(plain).encode()).hexdigest()}


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's log.jsonl, oldest first."""
    return [json.loads(line) for line in (run / LOG).read_text(encoding="utf-8").splitlines()]


__all__ = ["TrainResult", "log_of", "look", "prepare", "train"]
