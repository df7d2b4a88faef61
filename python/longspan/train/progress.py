"""Progress of a run on standard error: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from longspan.train.record import Recorder

LINE_EVERY_SECONDS = 15.0


class Progress(TrainerCallback):
    """Shows step, loss and tokens/s of the last step, and the time left."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self._bar: Any = None
        self._task: Any = None
        self._last_line = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("train"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Bar(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("", total=state.max_steps, completed=state.global_step)
        self._bar.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        record = self.recorder.steps[-1]
        figures = f"loss {record.loss:.4f}  {record.tokens / record.seconds:.0f} tokens/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, description=figures)
            return
        now = time.monotonic()
        if now - self._last_line >= LINE_EVERY_SECONDS or state.global_step >= state.max_steps:
            self._last_line = now
            print(f"step {state.global_step}/{state.max_steps}  {figures}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
