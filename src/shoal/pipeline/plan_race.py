"""Which plan recovers best: all contenders begin their recovery, the better half goes on, until one is left.

Damage before recovery is a poor guide to what is left after it: a plan of plain removal, far behind at first, may draw
level after the same distillation. So is the divergence after the first steps: who begins far behind falls faster. So
plans of all families run under the same conditions, each through the first steps of the whole recovery, at its learning
rates, from the plan as it was built; what decides is what its learning curve comes to at the end of the budget
(`learning_curve`).

Source: successive halving, Jamieson and Talwalkar 2016, arXiv:1502.07943; here rungs are cumulative and students go on
from where they paused.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path as FilePath
from tempfile import TemporaryDirectory
from typing import Any

from torch import nn

from shoal.errors import NonFiniteError, ShoalError
from shoal.files.writing import write_atomically
from shoal.pipeline.plan_builder import PlanBuilder
from shoal.pipeline.plan_measure import MeasuredPlan
from shoal.pipeline.race_record import Track, contender_of, race_of, seconds_of
from shoal.pipeline.race_store import RaceStore, Shortlist
from shoal.pipeline.recovery import REASONS_TO_SKIP, RecoveryTask, skip_or_raise
from shoal.plan import Fold, Remove, Replace
from shoal.progress import no_progress
from shoal.record import PlanRace, Recovery
from shoal.recover import DistillConfig, TrainingBudget
from shoal.recover.distill import CHECKPOINT
from shoal.recover.rungs import PausedStudent, RungResult, RungTiming
from shoal.workers import LocalWorkers, Results, Workers, WorkerTask, working

SHARE = 0.1
"""Of the budget of recovery, at most, for the race: what those that are dropped have learned is lost.

With a third of 500 steps for it ResNet-56 at 0.3 of the latency ended behind a removal by block influence, which the
race had dropped, and which learned for all 500 (docs/figures.md).
"""
FIRST_RUNG = 25
"""Steps of the first rung; each further one is twice as far."""
_LATE = 1.5  # times its share of a budget of time: then the race ends with the rung
_LEAST_LEFT = 0.5  # of a budget of time for what follows, however long the race took


@dataclass(frozen=True)
class Ladder:
    """The rungs that so many plans climb: after each the better half goes on.

    Args:
        plans: that begin.
    """

    plans: int

    @property
    def rungs(self) -> list[int]:
        """Steps from the start: 25, 50, 100, 200 for 16 plans."""
        return [FIRST_RUNG * 2**index for index in range(max(0, self.plans - 1).bit_length())]

    def looks(self, rung: int) -> list[int]:
        """Where students are looked at on the way to a rung: half-way to the first too, for two points of a curve."""
        return [rung // 2, rung] if rung == FIRST_RUNG else [rung]

    @property
    def sizes(self) -> list[int]:
        """How many plans climb to each rung: 16, 8, 4, 2."""
        return [math.ceil(self.plans / 2**index) for index in range(len(self.rungs))]

    @property
    def steps(self) -> int:
        """Of all plans together."""
        climbs = [rung - before for before, rung in zip([0, *self.rungs], self.rungs, strict=False)]
        return sum(size * climb for size, climb in zip(self.sizes, climbs, strict=True))

    def spent(self, budget: TrainingBudget, timing: RungTiming) -> float:
        """The share of a budget that it takes."""
        looks = sum(size * len(self.looks(rung)) for size, rung in zip(self.sizes, self.rungs, strict=True))
        seconds = looks * timing.student + self.steps * timing.step
        return budget.spent(self.steps, seconds)

    @classmethod
    def largest(cls, plans: int, budget: TrainingBudget, timing: RungTiming) -> "Ladder | None":
        """That of the most plans, at most so many, that takes its share of a budget at most; None: not even two."""
        fitting = (cls(count) for count in range(plans, 1, -1))
        return next((ladder for ladder in fitting if ladder.spent(budget, timing) <= SHARE), None)


@dataclass(frozen=True, eq=False)
class RaceOutcome:
    """What came of a race.

    Args:
        plan: the winner.
        network: of the winner, with what it has learned; None where that is no better than what it began with.
        record: of the race.
        notes: what there is to say.
        ranking: all plans, the best first.
    """

    plan: MeasuredPlan
    network: nn.Module | None
    record: PlanRace
    notes: list[str]
    ranking: list[MeasuredPlan]


@dataclass(frozen=True, eq=False)
class Contender:
    """What a worker needs of a contender: its network as it begins, its plan, and what it has learned so far."""

    network: nn.Module
    actions: Sequence[Remove | Replace | Fold]
    pause: bytes | None


@dataclass(frozen=True, eq=False)
class Climber:
    """Climbs in another process, where the folder of the race need not be; what was learned comes back as bytes.

    Args:
        task: the recovery.
        total: steps of the whole recovery.
    """

    task: RecoveryTask
    total: int

    def __getstate__(self) -> dict[str, Any]:
        """Without the progress bar, which is here."""
        return {"task": replace(self.task, progress=no_progress), "total": self.total}

    def __call__(self, climb: tuple[int, int], contender: Contender) -> tuple[RungResult | ShoalError, bytes]:
        """What a contender comes to at a rung, or why it does not get there; `climb` holds its number, and the rung."""
        with TemporaryDirectory(prefix="shoal-race-") as folder:
            pause = FilePath(folder) / CHECKPOINT
            if contender.pause is not None:
                pause.write_bytes(contender.pause)
            student = self.task.paused(contender.network, contender.actions, pause.parent, self.total)
            try:
                return student.climb(climb[1]), pause.read_bytes()
            except (NonFiniteError, *REASONS_TO_SKIP) as error:
                return error, b""


class Race:
    """The race of plans that a recovery begins with.

    Args:
        task: the recovery.
        fingerprint: all that the race depends on but the tables.
        workers: who climbs; by default this process.
    """

    def __init__(self, task: RecoveryTask, fingerprint: Mapping[str, Any], workers: Workers | None = None) -> None:
        self.task, self.budget, self.workers = task, task.config.total, workers or LocalWorkers()
        self.store = RaceStore(task.config.path, fingerprint)
        self.notes: list[str] = []
        self.steps = self.budget.steps or 0
        """Of the whole recovery; where the budget is a time, as many as fit by a step that was timed."""

    def size(self, plan: MeasuredPlan, builder: PlanBuilder) -> int:
        """How many plans can contend within the race's share of the budget; 0 for no race, which a note says.

        Args:
            plan: that is timed, where the budget is a time.
            builder: makes its network.
        """
        requested = self.task.config.race
        try:
            timing = self._timing(plan, builder)
        except REASONS_TO_SKIP as error:
            self.notes.append(f"no race of plans; {skip_or_raise(self.task.config, error)}")
            return 0
        ladder = Ladder.largest(requested, self.budget, timing)
        if ladder is None:
            self.notes.append(
                f"no race of plans: it takes at most a tenth of the recovery budget of {self.budget}, which is too "
                f"little for {FIRST_RUNG} steps of two plans each"
            )
            return 0
        self.steps = self.budget.steps or round((self.budget.seconds or 0.0) / timing.step)
        if ladder.plans < requested:
            self.notes.append(
                f"a race of {ladder.plans} plans, not {requested}: it takes at most a tenth of the recovery budget of "
                f"{self.budget}"
            )
        return ladder.plans

    def run(self, shortlist: Shortlist, builder: PlanBuilder) -> RaceOutcome:
        """Distill the contenders from rung to rung; the same conditions for all."""
        ladder, self.steps = Ladder(len(shortlist.contenders)), shortlist.steps
        tracks = [Track(plan, self.steps) for plan in shortlist.contenders]
        running, rungs = tracks, []
        with working(self.workers, Climber(self.task, self.steps)) as results:
            for rung, size in zip(ladder.rungs, [*ladder.sizes[1:], 1], strict=True):
                stage = f"race of {len(tracks)} plans, step {rung}"
                looks = ladder.looks(rung)
                for look in looks if self.workers.count > 1 else []:
                    self._climb_elsewhere(stage, running, look, builder, results)
                for index, track in enumerate(running):
                    self.task.progress(stage, index, len(running))
                    for look in looks:
                        self._climb(track, look, builder)
                    self._drop(running, size)
                rungs += looks
                running = sorted((track for track in running if not track.is_out), key=lambda track: track.order)[:size]
                if len(running) < 2 or self._is_late(tracks):
                    break
        winner = min(tracks, key=lambda track: track.order)
        network = None if winner.is_out else self._learned(winner, builder)
        contenders = [
            contender_of(track, tracks, 1 + shortlist.plans.index(track.plan), builder.actions(track.plan.path))
            for track in tracks
        ]
        record = race_of(contenders, tracks, rungs, self.budget).model_copy(update={"continued": network is not None})
        ranking = [track.plan for track in sorted(tracks, key=lambda track: track.order)]
        return RaceOutcome(winner.plan, network, record, [*self.notes, record.summary], ranking)

    def _timing(self, plan: MeasuredPlan, builder: PlanBuilder) -> RungTiming:
        """What a rung takes here; nothing where the budget is a number of steps."""
        if self.budget.steps is not None:
            return RungTiming(0.0, 0.0)
        network, actions = builder.network(plan.path), builder.actions(plan.path)
        return self.task.paused(network, actions, self.store.root, FIRST_RUNG).timing()

    def _student(self, track: Track, builder: PlanBuilder) -> PausedStudent:
        path = track.plan.path
        network = self.store.load_start_(path, builder.build(path))
        return self.task.paused(network, builder.actions(path), self.store.folder(path), self.steps)

    def _climb_elsewhere(
        self, stage: str, running: Sequence[Track], rung: int, builder: PlanBuilder, results: Results
    ) -> None:
        """All contenders up to a look, by workers; what they learned is in the folder then, as if it was here."""

        def tasks() -> Iterator[WorkerTask]:
            for index, track in enumerate(running):
                path = track.plan.path
                if not track.failure and self.store.finished(path, rung) is None:
                    network = self.store.load_start_(path, builder.build(path))
                    pause = self.store.folder(path) / CHECKPOINT
                    before = pause.read_bytes() if pause.exists() else None
                    yield WorkerTask((index, rung), Contender(network, builder.actions(path), before))

        for done, ((index, _), (result, pause)) in enumerate(results(tasks()), 1):
            track = running[index]
            if isinstance(result, NonFiniteError):
                track.failure = result.message
            elif isinstance(result, ShoalError):
                track.failure = skip_or_raise(self.task.config, result)
            else:
                write_atomically(self.store.folder(track.plan.path) / CHECKPOINT, partial(_write, pause))
                self.store.add(track.plan.path, rung, result)
            self.task.progress(stage, done, len(running))

    def _climb(self, track: Track, rung: int, builder: PlanBuilder) -> None:
        """One contender up to a rung, unless it was there before an interruption, or a worker took it there."""
        if track.is_out:
            return
        path = track.plan.path
        result = self.store.finished(path, rung)
        if result is None:
            try:
                result = self._student(track, builder).climb(rung)
            except NonFiniteError as error:
                track.failure = error.message
                return
            except REASONS_TO_SKIP as error:
                track.failure = skip_or_raise(self.task.config, error)
                return
            self.store.add(path, rung, result)
        track.results.append(result)

    def _drop(self, running: Sequence[Track], size: int) -> None:
        """Remove the students that are out already: no more than `size` of those that are at the rung go on."""
        rung = max(len(track.results) for track in running)
        there = [track for track in running if track.is_out or len(track.results) == rung]
        kept = sorted((track for track in there if not track.is_out), key=lambda track: track.order)[:size]
        for track in there:
            if track not in kept:
                self.store.drop(track.plan.path)

    def _is_late(self, tracks: Sequence[Track]) -> bool:
        """Whether a budget of time has no room for another rung, because a step took longer than it did at first."""
        seconds = seconds_of(tracks)
        if self.budget.seconds is None or self.budget.spent(0, seconds) <= _LATE * SHARE:
            return False
        self.notes.append("the race ended early: steps took longer than those that were timed before it")
        return True

    def _learned(self, track: Track, builder: PlanBuilder) -> nn.Module | None:
        """The winner's network with what it has learned; None where its initial weights are nearer to the original."""
        result = self._student(track, builder).result(track.results[-1].steps)
        return result.model if result.recovery.kept_step else None


def _write(content: bytes, path: FilePath) -> None:
    path.write_bytes(content)


def remaining(budget: TrainingBudget, race: PlanRace | None) -> TrainingBudget:
    """What a race has left of the budget of recovery."""
    if race is None:
        return budget
    if budget.steps is not None:
        return TrainingBudget(steps=max(1, budget.steps - race.steps))
    seconds = budget.seconds or 0.0
    return TrainingBudget(seconds=max(seconds - race.seconds, _LEAST_LEFT * seconds))


def settings_after(settings: DistillConfig, race: PlanRace | None) -> DistillConfig:
    """How recovery goes on after a race: what its winner has learned needs no second warm-up."""
    return replace(settings, warm_up=0.0) if race is not None and race.continued else settings


def since_race(recovery: Recovery, race: PlanRace | None) -> Recovery:
    """What was recovered since before the race, where recovery went on from what its winner had learned."""
    before = race.winner.divergence_before if race is not None and race.continued else None
    return recovery.model_copy(update={"divergence_before": before}) if before is not None else recovery
