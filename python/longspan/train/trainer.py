"""A thin subclass of `transformers.Trainer`: exact data order, atomic checkpoints, exact resume."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from longspan.nn.beside import beside_parameters
from longspan.recipe import Recipe
from longspan.train import checkpoint, weights
from longspan.train.hooks import Hooks
from longspan.train.optimizer import build_optimizer
from longspan.train.record import Recorder
from longspan.train.sampler import RunSampler


def training_arguments(recipe: Recipe, run: Path, *, recompute: str | None = None) -> TrainingArguments:
    """Trainer's arguments for a recipe; its logging, saving and progress bar are off, ours run.

    recompute: what `memory.recompute: auto` was settled to.
    """
    layer = (recompute or recipe.memory.recompute) == "layer"
    rate: float = getattr(recipe.update.engine, "lr", 0.0)
    arguments = TrainingArguments(
        output_dir=str(run),
        max_steps=recipe.trainer.steps,
        per_device_train_batch_size=recipe.trainer.batch,
        gradient_accumulation_steps=recipe.trainer.accumulate,
        learning_rate=rate,
        lr_scheduler_type="constant_with_warmup" if recipe.trainer.schedule == "constant" else recipe.trainer.schedule,
        warmup_steps=recipe.trainer.warmup,
        max_grad_norm=recipe.trainer.clip,
        seed=recipe.seed,
        activation_checkpointing=layer,
        activation_checkpointing_kwargs={"use_reentrant": False} if layer else None,
        logging_strategy="no",
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        # The collator makes cu_seq_lens and position_ids; no dataset column may be dropped before it runs.
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        logging_nan_inf_filter=False,
        label_names=["labels"],
    )
    if arguments.world_size > 1:
        raise ValueError(f"{arguments.world_size} processes: training runs in one process; start it without torchrun")
    # DataParallel would cut a flattened batch at a wrong place; one process uses one device.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


class LongTrainer(Trainer):
    """Trains `model` on map-style `rows` as a recipe says.

    The loss of a step is the exact mean over its labels, whatever the number of micro-batches. A checkpoint
    appears whole or not at all, and a run resumed from it makes the same bits as one that was never
    interrupted. A loss or a gradient that is not finite raises FloatingPointError before the weights change.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        *,
        run: Path,
        rows: Any,
        collate: Callable[[list[Any]], dict[str, Any]],
        recorder: Recorder,
        callbacks: Sequence[TrainerCallback] = (),
        keep_checkpoints: int = 2,
        state: Callable[[], dict[str, Any]] = dict,
        recompute: str | None = None,
    ) -> None:
        self.recipe = recipe
        self.run = run
        self.recorder = recorder
        self.keep_checkpoints = keep_checkpoints
        self._extra_state = state
        self.hooks = Hooks(recipe, model)
        self._use_cache = getattr(model.config, "use_cache", True)
        super().__init__(
            model=model,
            args=training_arguments(recipe, run, recompute=recompute),
            data_collator=collate,
            train_dataset=rows,
            callbacks=[recorder, self.hooks, *callbacks],
        )
        self.remove_callback(PrinterCallback)

    # Data and steps.

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        # One "epoch" of Trainer is the whole run: it never has to handle a short last batch.
        count = self.args.max_steps * self.args.train_batch_size * self.args.gradient_accumulation_steps
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return RunSampler(len(rows), count, self.recipe.seed)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            owner: Any = self.model if model is None else model
            undecayed = beside_parameters(owner)
            self.optimizer = build_optimizer(self.recipe, owner, undecayed)
        return self.optimizer

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        self.recorder.begin_step()
        batches, items = super().get_batch_samples(*args, **kwargs)
        # A step whose labels are all ignored has loss 0 and gradient 0, not 0/0.
        return batches, items.clamp(min=1) if torch.is_tensor(items) else items

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        tokens = inputs["input_ids"].numel()
        if self.recipe.update.engine.forward_only:
            loss = self._measure(model, inputs, num_items_in_batch)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._refuse_infinite("loss", float(loss))
        self.recorder.add_batch(loss, tokens)
        return loss

    def _measure(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        """A micro-batch of an engine that needs losses only; no dropout, nothing is saved for a backward."""
        inputs = self._prepare_inputs(inputs)
        sign = -1.0 if getattr(self.recipe.update.engine, "maximises", False) else 1.0

        def metric() -> torch.Tensor:
            loss: Any = self.compute_loss(model, dict(inputs), num_items_in_batch=num_items_in_batch)
            return sign * loss.float()

        model.eval()
        mean: float = self._bare_optimizer().estimate(metric)
        return torch.tensor(sign * mean)

    def _bare_optimizer(self) -> Any:
        """Ours, without Accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        # Trainer asks for this only if clipping is on. The step itself clips; here the norm is measured.
        norm = self._bare_optimizer().prepare()
        return torch.zeros(()) if norm is None else norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = self._clip_grad_norm(model) if grad_norm is None else grad_norm
        self._refuse_infinite("gradient norm", float(norm))
        self.recorder.set_grad_norm(float(norm))
        return norm

    def _refuse_infinite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the {what} is {value} at step {self.state.global_step + 1}; the weights were not changed. "
                "Try a smaller update.engine.lr, more trainer.warmup or a smaller trainer.clip"
            )

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Nothing: Trainer's estimate walks over all parameters on every micro-batch and is read nowhere."""
        return 0

    # Checkpoints.

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        step = self.state.global_step
        with checkpoint.writing(self.run, step) as folder:
            self.save_model(str(folder), _internal_call=True)
            self._save_optimizer_and_scheduler(str(folder))
            self.hooks.save(folder)
            self._save_scaler(str(folder))
            self._save_rng_state(str(folder))
            self.state.save_to_json(str(folder / "trainer_state.json"))
            state = {"step": step, "recorder": self.recorder.state(), **self._extra_state()}
            (folder / checkpoint.STATE).write_text(json.dumps(state) + "\n", encoding="utf-8")
        checkpoint.rotate(self.run, step, self.keep_checkpoints)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir if output_dir is not None else str(self.args.output_dir))
        weights.save(self.model, folder, self.recipe, use_cache=self._use_cache)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        owner: Any = self.model if model is None else model
        weights.load(owner, Path(resume_from_checkpoint), self.recipe)
        self.hooks.load(Path(resume_from_checkpoint))
