"""Distillation that pauses at given steps (rungs): students are compared after the same few steps, before some go on.

All of them learn at the same rate from the same mini-batches in the same order. A student that pauses is on the disk,
with its optimizer: however many there are, one at a time is in memory.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import device_of
from shoal.files.jsonl import JsonlFile
from shoal.progress import ProgressCallback, no_progress
from shoal.recover.config import DistillConfig
from shoal.recover.distill import Distillation, DistillData, DistillInputs, DistillResult, learning
from shoal.recover.train_step import has_batch_norms
from shoal.training.budget import TrainingBudget

RUNG_LR = {"sgd": 0.3, "adamw": 0.0003}
"""The rate of all students where none is given, by optimizer.

A rung has too few steps for a safe rate: of four plans of a ResNet-20 at 0.6 of the latency, 50 steps at 0.02 left
0.79 to 0.90 nats of 0.81 to 1.08, at 0.2 they left 0.44 to 0.62; the recovery that followed found 0.3 for each, as it
did for every plan of a ResNet-56 (docs/figures.md).
"""


@dataclass(frozen=True)
class RungResult:
    """Where a student is after a rung.

    Args:
        divergence_before: from the teacher on validation, before its first step.
        divergence: of the weights it has learned by now; infinite where it diverged.
        steps: it has taken so far.
        seconds: of this rung, evaluations included.
        rate: at which it learns.
        n: validation samples.
    """

    divergence_before: float
    divergence: float
    steps: int
    seconds: float
    rate: float
    n: int


@dataclass(frozen=True)
class RungTiming:
    """What a rung takes here, in seconds: for each student, whatever the number of steps, and for each step."""

    student: float
    step: float


@dataclass(frozen=True, eq=False)
class PausedStudent:
    """A student that learns from rung to rung; its state is in a folder in between.

    Args:
        student: as it begins; it is left as it was.
        teacher: likewise.
        data: what it learns from.
        validation: what it is judged on.
        config: how it learns. Without a rate it is that of `RUNG_LR`: a search would take longer than a rung.
        folder: of this student alone.
        total: steps of the whole recovery that the rungs are the beginning of: the learning rate falls to zero by then.
        progress: called with (stage, done, total).
    """

    student: nn.Module
    teacher: nn.Module
    data: DistillData
    validation: Iterable[Any]
    config: DistillConfig
    folder: Path
    total: int
    progress: ProgressCallback = no_progress

    def climb(self, until: int) -> RungResult:
        """Learn up to this step, from where it paused before."""
        started = time.perf_counter()
        with learning(self.folder, str(device_of(self.student)), self.config.seed):
            run = self._run(until)
            run.prepare()
            run.run()
            state = run.state
            return RungResult(
                state.divergence_before,
                run.rung_divergence(),
                state.step,
                time.perf_counter() - started,
                state.lr,
                run.teacher_kl.n,
            )

    def result(self, at: int) -> DistillResult:
        """The student as it is at the rung where it paused last, in the form of its plan."""
        with learning(self.folder, str(device_of(self.student)), self.config.seed):
            run = self._run(at)
            run.prepare()
            run.state.stop_reason = run.state.stop_reason or "budget"
            return run.result()

    def timing(self) -> RungTiming:
        """How long a rung takes here; nothing is learned, and nothing kept."""
        started = time.perf_counter()
        with learning(None, str(device_of(self.student)), self.config.seed):
            run = self._run(1, keeps=False)
            run.prepare()
            run.evaluate_average()
            student = time.perf_counter() - started
            return RungTiming(student, run.try_steps())

    def _run(self, until: int, *, keeps: bool = True) -> "RungDistillation":
        inputs = DistillInputs.of(self.student, self.teacher, self.data, self.validation)
        # One process runs a race, and a rung is too short to keep what the teacher says.
        settings = replace(self.config, device=None, shard=False, cache_teacher=0)
        budget = TrainingBudget(steps=self.total)
        where, folder = self.config.device or str(device_of(self.student)), self.folder if keeps else None
        return RungDistillation(inputs, budget, settings, where, folder, self.progress).up_to(until)


class RungDistillation(Distillation):
    """A distillation of a few steps that pauses at a rung, and is evaluated there and nowhere else."""

    until = 0

    def up_to(self, step: int) -> "RungDistillation":
        """The same run, which pauses at this step."""
        self.until = step
        return self

    def prepare(self) -> None:
        """Everything before the first step of this rung."""
        self.setup()
        if not self.resumed:
            self.start()

    def metrics_file(self) -> JsonlFile | None:
        """None: the rungs are in the record of the race."""
        return None

    def start(self) -> None:
        """Measure where the student begins; the rate is not searched for."""
        state, settings = self.state, self.settings
        state.divergence_before = self.teacher_kl.evaluate(self.student if self.original is None else self.original)
        state.best_divergence = state.divergence_before
        if self.original is not None:
            state.best_divergence = self.teacher_kl.evaluate(self.student)
        state.lr = RUNG_LR[self.optimizer_name] if settings.rate is None else settings.rate

    def is_evaluation_due(self) -> bool:
        """At the rung, or where the loss has diverged."""
        return self.is_finished()

    def is_finished(self) -> bool:
        """Whether the rung is reached, or there is no point in going on."""
        return self.state.step >= self.until or bool(self.state.stop_reason)

    def evaluate(self) -> None:
        """How far the student is from the teacher by what it has learned, not by the weights it began with."""
        self.state.lowest_divergence = math.inf if self.state.stop_reason else self.evaluate_average()
        self.save()

    def evaluate_average(self) -> float:
        """The divergence of the averaged weights, their batch norms as they are or recalibrated; infinite for NaN."""
        networks = {"averaged weights of the race": self.average.network}
        recalibrated = self.recalibrated(self.average.network) if has_batch_norms(self.student) else None
        if recalibrated is not None:
            networks["averaged weights of the race, batch norms recalibrated"] = recalibrated
        divergences = [self.evaluate_weights(network, name) for name, network in networks.items()]
        return min(divergences) if all(map(math.isfinite, divergences)) else math.inf

    def rung_divergence(self) -> float:
        """What `evaluate` measured last."""
        lowest = self.state.lowest_divergence
        return lowest if math.isfinite(lowest) else math.inf
