"""SIGTERM, which schedulers send before they take a machine away: the step that runs is finished and saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StoppedError(RuntimeError):
    """A run that ended early because the process was asked to, with everything saved.

    step: how many steps are made. checkpoint: what holds them. exit_code: what a shell shows for such an end, 143.
    """

    exit_code = 128 + signal.SIGTERM

    def __init__(self, step: int, checkpoint: Path) -> None:
        super().__init__(
            f"stopped by SIGTERM after step {step}; {checkpoint} holds it, resume (--resume) continues bit for bit"
        )
        self.step, self.checkpoint = step, checkpoint


class Stopper(TrainerCallback):
    """Ends a run behind the step in which SIGTERM arrives; a second one ends the process at once."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signal; does nothing outside the main thread, which alone may."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.getsignal(signal.SIGTERM)

        def note(*_: Any) -> None:
            self.asked = True
            signal.signal(signal.SIGTERM, before)

        signal.signal(signal.SIGTERM, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Asks Trainer to save and to leave its loop."""
        if self.asked:
            control.should_save = control.should_training_stop = True
