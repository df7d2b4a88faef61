"""What a run writes down: per-step figures, a JSON Lines log and TensorBoard scalars."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longspan import folders
from longspan.train import memory

LOG = "log.jsonl"
TENSORBOARD = "tensorboard"


@dataclasses.dataclass(frozen=True)
class StepRecord:
    """One optimizer step: mean loss over its labels in nats, gradient norm before clipping, seconds."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    seconds: float


class Recorder(TrainerCallback):
    """Collects a StepRecord per optimizer step and writes every `log_every` of them as one line.

    A line of `log.jsonl` holds: step, epoch (passes over the rows), loss (mean of the steps since the last
    line), grad_norm and learning_rate (the largest of the parameter groups) of its last step, tokens_per_second and
    seconds_per_step over the same steps, tokens (since the run began), peak_memory_bytes (see `memory`) and, with a
    GPU, peak_cuda_bytes. `notes` are written into every line, and what `figures` returns when the line is written.
    """

    def __init__(
        self,
        run: Path,
        *,
        log_every: int,
        save_every: int,
        rows_per_step: int,
        rows: int,
        notes: Mapping[str, Any] | None = None,
        figures: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self.run = run
        self.notes = dict(notes or {})
        self.figures = figures
        self.log_every = log_every
        self.save_every = save_every
        self.rows_per_step = rows_per_step
        self.rows = rows
        self.steps: list[StepRecord] = []
        self.pending: list[StepRecord] = []
        self.tokens_before = 0
        self.peak_memory = 0
        self._writer: Any = None
        self._losses: list[torch.Tensor] = []
        self._tokens = 0
        self._began = 0.0
        self._grad_norm = math.nan
        self._rate = math.nan

    # What the trainer reports while it works on a step.

    def begin_step(self) -> None:
        """The clock starts before the step's rows are fetched."""
        self._began = time.perf_counter()
        self._losses.clear()
        self._tokens = 0

    def add_batch(self, loss: torch.Tensor, tokens: int) -> None:
        """Count one micro-batch: its share of the step's loss, and its tokens."""
        self._losses.append(loss)
        self._tokens += tokens

    def set_grad_norm(self, norm: float) -> None:
        """Gradient norm of the step before clipping."""
        self._grad_norm = norm

    # State that a checkpoint carries, so that lines written after a resume are the ones of an uninterrupted
    # run.

    def state(self) -> dict[str, Any]:
        """Steps not yet written as a line, and the number of tokens seen so far (JSON)."""
        tokens = self.tokens_before + sum(record.tokens for record in self.steps)
        return {"pending": [dataclasses.asdict(record) for record in self.pending], "tokens": tokens}

    def restore(self, state: dict[str, Any], step: int) -> None:
        """Continue after `step`: drop later and torn lines of the log, take up the open steps."""
        self.pending = [StepRecord(**one) for one in state["pending"]]
        self.tokens_before = int(state["tokens"])
        path = self.run / LOG
        if path.is_file():
            kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _line_step(line) <= step]
            folders.write_file(path, "".join(f"{line}\n" for line in kept))

    # Trainer's events.

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.run / TENSORBOARD), purge_step=state.global_step + 1)
        memory.reset_peak()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._rate = float(max(kwargs["lr_scheduler"].get_last_lr()))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        loss = float(torch.stack(self._losses).sum())
        seconds = time.perf_counter() - self._began
        step = state.global_step
        record = StepRecord(step, loss, self._grad_norm, self._rate, self._tokens, seconds)
        self.steps.append(record)
        self.pending.append(record)
        last = step >= state.max_steps
        if step % self.log_every == 0 or last:
            self._write(record)
        if last or (self.save_every and step % self.save_every == 0):
            control.should_save = True

    def _write(self, record: StepRecord) -> None:
        done = self.pending
        seconds = sum(one.seconds for one in done)
        line = {
            "step": record.step,
            "epoch": record.step * self.rows_per_step / self.rows,
            "loss": sum(one.loss for one in done) / len(done),
            "grad_norm": record.grad_norm,
            "learning_rate": record.learning_rate,
            "tokens_per_second": sum(one.tokens for one in done) / seconds,
            "seconds_per_step": seconds / len(done),
            "tokens": self.tokens_before + sum(one.tokens for one in self.steps),
            "peak_memory_bytes": self.measure_peak(),
        }
        cuda = memory.peak_cuda()
        if cuda is not None:
            line["peak_cuda_bytes"] = cuda
        line |= self.figures()
        self.pending = []
        with (self.run / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**line, **self.notes}) + "\n")
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(f"train/{name}", value, record.step)

    def measure_peak(self) -> int:
        """Peak resident bytes since training began; the system's own figure may drop by a few pages again."""
        self.peak_memory = max(self.peak_memory, memory.peak_rss())
        return self.peak_memory

    def close(self) -> None:
        """Flush and close the TensorBoard file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _line_step(line: str) -> float:
    """The step of a log line; infinity for a line that was torn."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
