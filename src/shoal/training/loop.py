"""The training loop that recovery, students and epsilon-ResNet share.

Steps follow each other; now and then an evaluation decides what to keep and whether to go on, and is logged and saved.
What is learned in a step and how it is evaluated is up to the subclass.
"""

import signal
import time
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from shoal.errors import Terminated
from shoal.progress import ProgressCallback, no_progress
from shoal.training.budget import TrainingBudget


@dataclass
class LoopState:
    """How far a training is; part of its checkpoint.

    Args:
        step: optimizer steps so far.
        samples: training samples so far.
        seconds: spent before this process resumed the run.
        evaluations: how many of the evaluations planned over the budget are done.
        stop_reason: why the run ended; empty while it runs.
    """

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    evaluations: int = 0
    stop_reason: str = ""


class Termination:
    """Within its block SIGTERM does not end the process; it is remembered, for the loop to save and leave."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> None:
        with suppress(ValueError):  # only the main thread may listen
            self._before = signal.signal(signal.SIGTERM, self._remember)

    def __exit__(self, *exception: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _remember(self, number: int, frame: object) -> None:
        self.asked = True


class TrainingLoop(ABC):
    """Train step by step until `is_finished`, and evaluate whenever `is_evaluation_due`.

    Args:
        state: where it starts.
        on_progress: called with (stage, done, total) after each step.
    """

    def __init__(self, state: LoopState, on_progress: ProgressCallback = no_progress) -> None:
        self.state, self.on_progress = state, on_progress
        self.started = time.perf_counter()
        self.termination = Termination()

    @property
    def elapsed(self) -> float:
        """Seconds so far, those before an interruption included."""
        return self.state.seconds + time.perf_counter() - self.started

    def run(self) -> None:
        """Train to the end."""
        with self.termination:
            while not self.is_finished():
                samples = self.train_step()
                self.state.step += 1
                self.state.samples += samples
                self.after_step()
                if self.is_evaluation_due():
                    self.evaluate()
                self.report_progress()
                if self.is_terminated():
                    self.before_leaving()
                    raise Terminated

    @abstractmethod
    def train_step(self) -> int:
        """Learn from the next mini-batch; returns how many samples it had."""

    def is_terminated(self) -> bool:
        """Whether the system asked this process to end."""
        return self.termination.asked

    def before_leaving(self) -> None:  # noqa: B027
        """Save what a later call resumes from; nothing unless overridden."""

    def after_step(self) -> None:  # noqa: B027
        """Called after each step, once it is counted; does nothing unless overridden."""

    @abstractmethod
    def evaluate(self) -> None:
        """Evaluate, keep the best, apply the stopping rule, log, save a checkpoint."""

    @abstractmethod
    def is_evaluation_due(self) -> bool:
        """Whether to evaluate after the step just taken."""

    @abstractmethod
    def is_finished(self) -> bool:
        """Whether there is nothing more to do."""

    @abstractmethod
    def report_progress(self) -> None:
        """Call `on_progress`."""


class BudgetLoop(TrainingLoop):
    """A loop over a budget of steps or time, with evaluations spread evenly over it, the last one at its end.

    Args:
        budget: of the run.
        num_evaluations: over the whole budget.
        state: where it starts.
        on_progress: called with (stage, done, total) after each step.
    """

    def __init__(
        self,
        budget: TrainingBudget,
        num_evaluations: int,
        state: LoopState,
        on_progress: ProgressCallback = no_progress,
    ) -> None:
        super().__init__(state, on_progress)
        self.budget, self.num_evaluations = budget, num_evaluations
        self.spent = 0.0

    def after_step(self) -> None:
        """Read the clock: `spent` is the share of the budget that is used up."""
        self.spent = self.budget.spent(self.state.step, self.elapsed)

    def is_evaluation_due(self) -> bool:
        """Whether the next share of the budget is used up."""
        due = self.spent * self.num_evaluations >= self.state.evaluations + 1 - 1e-9
        return due or self.spent >= 1

    def count_evaluation(self) -> None:
        """Note that an evaluation was done; a slow step may have passed several that were planned."""
        passed = int(self.spent * self.num_evaluations + 1e-9)
        self.state.evaluations = max(self.state.evaluations + 1, passed)

    def is_finished(self) -> bool:
        """Whether the budget is used up, or the run was stopped."""
        return bool(self.state.stop_reason) or self.spent >= 1
