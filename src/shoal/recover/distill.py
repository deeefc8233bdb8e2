"""Distillation: a student learns to answer as its teacher does, within a budget, and cannot come out worse.

Labels are not needed: the teacher answers every sample, augmented and blended, and the student is told how far it is
off (KL on the answers, squared error of the features). What comes out is whatever was nearest to the teacher on
validation samples: weights averaged over the latest steps, seldom those of a single step, or the ones it began with.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.errors import UsageError, naming_memory_shortage
from shoal.files.jsonl import JsonlFile
from shoal.files.locking import holding
from shoal.measure import Reading, reading_of
from shoal.plan import Replace
from shoal.preserve import copied
from shoal.record import Recovery, RecoveryEvaluation
from shoal.recover.checkpoint import check_fingerprint, ensure_dir, fingerprint
from shoal.recover.config import DistillConfig
from shoal.recover.evaluation import TeacherKL, validation_samples
from shoal.recover.lr_search import RATES, SAFE_LR, LrSearchResult, find_lr, steps_for, try_step
from shoal.recover.preflight import (
    check_disjoint,
    check_in_memory,
    check_labelled,
    check_same_outputs,
    check_trainable,
    check_unlabelled,
)
from shoal.recover.train_step import DistillStep, has_batch_norms, matching_blocks
from shoal.recover.trainable import from_trainable_, match_dtype, to_trainable_
from shoal.recover.weight_averaging import WeightAverage
from shoal.replace import recalibrate_
from shoal.store.checkpoint import check_same_network, load_checkpoint, resuming, save_checkpoint
from shoal.surgery.signature import state_of
from shoal.training.budget import TrainingBudget, read_budget
from shoal.training.engine import Engine
from shoal.training.loaders import LoaderFactory, MixedLoader, ResumableLoader, loader_factory
from shoal.training.metrics import MetricsLog
from shoal.training.optim import ClippedOptimizer, cosine_lr, optimizer_for

Progress = Callable[[str, int, int], None]

CHECKPOINT = "recovery.safetensors"
METRICS = "recovery.jsonl"
# Far above the loss of the first mini-batch: the student is no longer learning, it is falling apart. A high rate may
# well double the loss for a while.
_FACTOR, _ABOVE = 4.0, 2.0
# Nats: a divergence that rounding alone makes.
_ROUNDING = 1e-6
_LOOKING = 0.2  # of a budget of time may go into looks
_CALIBRATION = 1024  # samples that batch norms are set from at the end
_BATCHES = 48  # mini-batches looked at for that, at most
_RECALIBRATED = ", batch norms recalibrated"
_NOTED = 10  # steps between two looks at the loss where that makes the device wait


@dataclass(frozen=True)
class DistillResult:
    """The student that came out, in eval mode, and what happened."""

    model: nn.Module
    recovery: Recovery


@naming_memory_shortage()
def distill(
    student: nn.Module,
    teacher: nn.Module,
    training: Iterable[Any] | LoaderFactory,
    *,
    validation: Iterable[Any],
    budget: str | int | TrainingBudget = "5m",
    unlabelled: Iterable[Any] | LoaderFactory | None = None,
    settings: DistillConfig | None = None,
    folder: str | Path | None = None,
    device: str | None = None,
    replaced: Sequence[Replace] = (),
    known: Sequence[Batch] = (),
    reading: Reading | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> DistillResult:
    """Teach a copy of `student` to answer as `teacher` does.

    A student in half precision learns in float32, and comes out in its own dtypes.

    Args:
        student: any network; it is left as it was.
        teacher: any network with the same outputs; likewise.
        training: mini-batches (labels are not needed), read again and again; or a function that gives the loader of an
            epoch, from 1, so that each epoch is augmented anew.
        validation: other mini-batches; what comes out is chosen on them. Keep them apart from test too.
        budget: `10m`, `90s`, or a number of steps.
        unlabelled: extra mini-batches of the same form, in the way of `training`.
        settings: everything else.
        folder: for checkpoint and metrics, made if it is missing; an unfinished run there goes on. None keeps neither.
        device: where it runs; by default where the student is.
        replaced: of the student's plan: its stand-ins learn as shortcut and rest with a batch norm, see
            `make_trainable_`, and come out as the plan says.
        known: mini-batches that these batch norms are set from.
        reading: how outputs are read, and which count; by default all, as the labels or the teacher's class tell.
        progress: called with (stage, done, total).

    Returns:
        A student that is at least as near to the teacher on validation as the one given.

    Raises:
        UsageError: a budget too short for one step, or no budget; validation data that is the training data; a network
            that is offloaded; the folder holds a checkpoint made with other settings.
        DataError: a teacher with other outputs, unlabelled data of another form, labels that are missing or do not fit
            where `settings.labels` needs them, or no data.
        NonFiniteError, ModelRaisedError: networks or data at fault.
        WeightsError: the folder holds the checkpoint of other networks, or of other validation samples.
        FolderError: the folder cannot be made, or the disk is full; the checkpoint before is still there.
    """
    settings, read = settings or DistillConfig(), read_budget(budget)
    if read is None:
        raise UsageError("the budget of the distillation is none", "Give a time (10m) or a number of steps (2000).")
    check_disjoint(validation, training=training, unlabelled=unlabelled)
    for network in (student, teacher):
        check_in_memory(network)
    check_trainable(student)
    path = ensure_dir(folder) if folder is not None else None
    where = device or str(next(student.parameters()).device)
    with (
        holding(path),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=_drawing(where)),
    ):
        torch.manual_seed(settings.seed)  # for loaders that shuffle validation: a run that goes on sees the same
        extra = loader_factory(unlabelled) if unlabelled is not None else None
        given = _Given(student, teacher, loader_factory(training), validation, extra, replaced, known, reading)
        return _Run(given, read, settings, where, path, progress).whole()


def _drawing(device: str) -> list[int]:
    """The devices whose random numbers are used up."""
    one = torch.device(device)
    if one.type != "cuda":
        return []
    return [one.index if one.index is not None else torch.cuda.current_device()]


@dataclass(frozen=True, eq=False)
class _Given:
    """What `distil` was given to work with; arguments as there."""

    student: nn.Module
    teacher: nn.Module
    training: LoaderFactory
    validation: Iterable[Any]
    unlabelled: LoaderFactory | None
    replaced: Sequence[Replace]
    known: Sequence[Batch]
    reading: Reading | None


@dataclass
class _State:
    """What a run knows besides tensors and places; all of it goes through a checkpoint."""

    step: int = 0
    samples: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    tried: dict[str, float | None] = field(default_factory=dict)
    began: float = 0.0
    looks: int = 0
    looked: int = 0
    before: float = math.nan
    best: float = math.nan
    best_step: int = 0
    kept: str = "the weights it began with"
    lowest: float = math.nan
    worse: int = 0
    first: float = math.nan
    loss: float = 0.0
    since: int = 0
    stopped: str = ""


class _Run:
    """One run of `distil`."""

    def __init__(
        self,
        given: _Given,
        budget: TrainingBudget,
        settings: DistillConfig,
        device: str,
        folder: Path | None,
        progress: Progress,
    ) -> None:
        self.started = time.perf_counter()
        self.budget, self.settings, self.folder, self.progress = budget, settings, folder, progress
        self.engine = Engine(device, settings.precision, channels_last=settings.channels_last)
        if self.engine.processes > 1:
            raise UsageError("distillation runs in one process", "Start it without `accelerate launch` or torchrun.")
        self.note_every = 1 if self.engine.device.type == "cpu" else _NOTED
        self.teacher = self.engine.placed(given.teacher).eval().requires_grad_(requires_grad=False)
        self._take(given)
        self.kind = optimizer_for(self.student) if settings.optimizer == "auto" else settings.optimizer
        self.weight = settings.weight_of_features(self.kind)
        stream, extra = ResumableLoader(given.training, settings.seed), None
        if given.unlabelled is not None:
            extra = ResumableLoader(given.unlabelled, settings.seed + 1, "unlabelled")
        self.material = MixedLoader(stream, extra, settings.unlabelled_share)
        self.epochs = stream.epochs
        samples = validation_samples(given.validation, settings.validation_images)
        self.judge = TeacherKL(self.teacher, samples, self.engine, self._reading(given.reading, samples))
        self.claim = fingerprint(given.student, given.teacher, samples) if folder is not None else {}
        self.extra = extra
        self.state = _State()
        self.resumed = False

    def _reading(self, reading: Reading | None, samples: Sequence[Batch]) -> Reading:
        """How outputs are read: as it was given, or as the labels of validation or training tell."""
        if reading is not None and reading.scaled:
            return reading
        moved = [match_dtype(self.teacher, self.engine.moved(one)) for one in samples]
        known = any(one.target is not None for one in samples)
        first = [] if known else [ResumableLoader(self.epochs, self.settings.seed).take()]
        return reading_of(
            self.teacher, moved, labelled=[match_dtype(self.teacher, self.engine.moved(one)) for one in first]
        )

    def _take(self, given: _Given) -> None:
        """The student in the form in which it learns, and beside it as it was given, where that is another form."""
        before = self.engine.placed(given.student).eval()
        self.student = copied(before)
        self.replaced = given.replaced
        stand_ins = {one.paths[0]: one.stand_in for one in given.replaced}
        self.form = to_trainable_(self.student, stand_ins, [self.engine.moved(one) for one in given.known])
        self.as_given = before if self.form.changed else None

    # The whole way

    def whole(self) -> DistillResult:
        """From the checks to the student that comes out."""
        first = self._checked()
        self.lesson = DistillStep(
            self.teacher,
            self._shared(first.take(2)),
            self.settings,
            self.engine,
            features=self.weight,
            reading=self.judge.reading,
            unlabelled=self.extra is not None,
        )
        self.network = state_of(self.student)
        self.average = WeightAverage(self.student)
        self.stepping = self._stepping(self.student)
        self.best = self._copied(self.student)
        self._resume()
        file = JsonlFile(self.folder / METRICS) if self.folder is not None else None
        self.history = MetricsLog(RecoveryEvaluation, "step", file)
        self.history.resume(self.state.step if self.resumed else -1)
        try:
            if not self.resumed:
                self._prepare(first)
            while not self.state.stopped:
                self._step()
            return self._finished()
        finally:
            self.history.close()

    def _checked(self) -> Batch:
        """The first training mini-batch, on the device; everything given fits together."""
        first = self.engine.moved(ResumableLoader(self.epochs, self.settings.seed).take())
        check_labelled(first, self.settings.labels)
        for form in (self.as_given, self.student):
            if form is not None:
                check_same_outputs(self.teacher, form, first.take(2))
        if self.extra is not None:
            own = ResumableLoader(self.extra.epochs, self.settings.seed, "unlabelled").take()
            check_unlabelled(self.engine.moved(own), first)
        return first

    def _shared(self, example: Batch) -> list[str]:
        if not self.weight:
            return []
        return matching_blocks(self.teacher, self.student, example, self.replaced)

    def _stepping(self, model: nn.Module) -> ClippedOptimizer:
        return ClippedOptimizer(model, self.kind, self.settings.decay, self.settings.clip)

    def _elapsed(self) -> float:
        return self.state.seconds + time.perf_counter() - self.started

    # Before the first step

    def _prepare(self, first: Batch) -> None:
        state = self.state
        look = time.perf_counter()
        # The teacher's answers are kept from here on.
        state.before = self.judge.of(self.student if self.as_given is None else self.as_given)
        look = time.perf_counter() - look
        state.best = self.judge.of(self.student) if self.as_given is not None else state.before
        if state.before <= _ROUNDING:
            state.stopped = "nothing"
            return
        twin = copied(self.student)
        tries = [try_step(twin, self.lesson, first, self._stepping(twin)) for _ in range(2)]
        seconds, state.first = min(one for one, _ in tries), tries[0][1]
        if self.budget.seconds is not None and seconds > self.budget.seconds - self._elapsed():
            raise UsageError(
                f"a budget of {self.budget} is too short for one step: a step takes {seconds:.2g} seconds here, "
                f"the checks before it {self._elapsed():.2g}",
                f"Give at least {math.ceil(2 * self._elapsed() + 10 * seconds)}s, or smaller mini-batches.",
            )
        state.looks = self._looks(look)
        found = self._rate(seconds)
        state.rate, state.tried = found.rate, found.tried
        state.began = self.budget.spent(0, self._elapsed())
        state.looked = int(state.began * state.looks)
        self.history.append(
            RecoveryEvaluation(step=0, seconds=self._elapsed(), rate=state.rate, divergence=state.before)
        )

    def _looks(self, seconds: float) -> int:
        """How often to look: less often where a look takes long."""
        wanted = self.settings.looks
        if self.budget.steps is not None:
            return min(wanted, self.budget.steps)
        return max(1, min(wanted, int(_LOOKING * (self.budget.seconds or 0.0) / max(seconds, 1e-9))))

    def _rate(self, step_seconds: float) -> LrSearchResult:
        if self.settings.rate is not None:
            return LrSearchResult(self.settings.rate, {})
        steps = steps_for(self.budget, step_seconds, len(RATES[self.kind]))
        if not steps:
            return LrSearchResult(SAFE_LR[self.kind], {})
        material = MixedLoader(ResumableLoader(self.epochs, self.settings.seed), None, 0.0)
        given = [material.take(step) for step in range(steps)]

        def tick(done: int, of: int) -> None:
            self.progress("finding the learning rate", done, of)

        return find_lr(self.student, self.lesson, given, self.kind, self._stepping, tick)

    # One step after the other

    def _step(self) -> None:
        state = self.state
        batch = self.material.take(state.step)
        rate = cosine_lr(self._middle(), state.rate, self.settings.warm_up)
        loss = self.lesson.teach(self.student, self.stepping, batch, state.step, rate)
        self.average.update(self.student)
        state.step += 1
        state.samples += batch.size
        spent = self.budget.spent(state.step, self._elapsed())
        looks = spent * state.looks >= state.looked + 1 - 1e-9 or spent >= 1
        if state.step % self.note_every == 0 or (looks and not state.since):
            self._note(float(loss))
        unit, done, of = self.budget.done_of(state.step, self._elapsed())
        self.progress(f"recovering ({unit})", done, of)
        if state.stopped or looks:
            self._look(spent, rate)

    def _middle(self) -> float:
        """The share of what the rate's test has left of the budget, in the middle of the coming step."""
        if self.budget.steps is not None:
            return (self.state.step + 0.5) / self.budget.steps
        began = min(self.state.began, 0.99)
        return (self.budget.spent(self.state.step, self._elapsed()) - began) / (1 - began)

    def _note(self, loss: float) -> None:
        if not math.isfinite(loss):
            self.state.stopped = "diverged"
        self.state.loss += loss
        self.state.since += 1

    def _look(self, spent: float, rate: float) -> None:
        """Judge the averaged weights, keep the best, decide whether to go on, write it all down."""
        state, last = self.state, spent >= 1
        mean, seen = state.loss / max(1, state.since), math.nan
        if mean > _FACTOR * state.first + _ABOVE:
            state.stopped = "diverged"
        state.looked = max(state.looked + 1, int(spent * state.looks + 1e-9))
        if not state.stopped:
            seen = self._judged(self.average.network, "averaged weights")
            # Against the looks before, not against where it began: a high rate first shakes the network up.
            improved = not seen >= state.lowest
            state.lowest, state.worse = (seen, 0) if improved else (state.lowest, state.worse + 1)
            if last:
                self._judged(self.student, "the last step's weights")
                self._judged_recalibrated()
            state.stopped = state.stopped or self._verdict(last=last)
        row = RecoveryEvaluation(
            step=state.step,
            seconds=self._elapsed(),
            rate=rate,
            loss=mean if math.isfinite(mean) else None,
            divergence=seen if math.isfinite(seen) else None,
        )
        state.loss, state.since = 0.0, 0
        self.history.append(row, best=state.best, stopped=state.stopped or None)
        self._save()

    def _judged(self, network: nn.Module, name: str) -> float:
        """The divergence of a network, which is taken as the best so far, if it is."""
        state = self.state
        found = self.judge.of(network)
        if not math.isfinite(found):
            state.stopped = "diverged"
        if found < state.best:
            state.best, state.best_step, state.kept = found, state.step, name
            self.best = self._copied(network)
        return found

    def _verdict(self, *, last: bool) -> str:
        if last:
            return "budget"
        return "early" if self.state.worse >= self.settings.patience else ""

    @staticmethod
    def _copied(network: nn.Module) -> dict[str, Tensor]:
        return {
            name: tensor.detach().clone() for name, tensor in network.state_dict().items() if isinstance(tensor, Tensor)
        }

    # What comes out

    def _finished(self) -> DistillResult:
        state = self.state
        model = self.student
        model.load_state_dict(self.best, strict=False)
        model.eval()
        if has_batch_norms(model) and state.best_step and _RECALIBRATED not in state.kept:
            model = self._recalibrated(model)
        model = self._as_it_came(model)
        seconds = self._elapsed()
        recovery = Recovery(
            budget=str(self.budget),
            steps=state.step,
            samples=state.samples,
            seconds=seconds,
            rate=state.rate,
            rates_tried=state.tried,
            optimizer=self.kind,
            divergence_before=state.before,
            divergence_after=state.best,
            n=self.judge.n,
            stopped=state.stopped,  # type: ignore[arg-type]
            kept=state.kept,
            kept_step=state.best_step,
            features=len(self.lesson.paths),
            features_weight=self.weight,
            rewritten=len(self.form.rewritten),
            resumed=self.resumed,
            settings=self.settings.to_dict(),
            curve=self.history.rows,
        )
        return DistillResult(model, recovery)

    def _as_it_came(self, model: nn.Module) -> nn.Module:
        """In the form that was given, and judged in it: what is rounded on the way back must not make it worse."""
        state = self.state
        if self.as_given is None:
            return model
        found = self.judge.of(from_trainable_(model, self.form)) if state.best_step else math.nan
        if found < state.before:
            state.best = found
            return model
        state.best, state.best_step, state.kept = state.before, 0, _State.kept
        return self.as_given

    def _judged_recalibrated(self) -> None:
        """In a short run statistics lag behind the weights: good weights may look bad until theirs are set anew."""
        for network, name in ((self.average.network, "averaged weights"), (self.student, "the last step's weights")):
            if has_batch_norms(network) and (twin := self._with_own_norms(network)) is not None:
                self._judged(twin, f"{name}{_RECALIBRATED}")

    def _recalibrated(self, model: nn.Module) -> nn.Module:
        """With batch-norm statistics of unblended samples and these very weights, where that is nearer."""
        twin = self._with_own_norms(model)
        found = self.judge.of(twin) if twin is not None else math.nan
        if twin is None or not found < self.state.best:
            return model
        self.state.best, self.state.kept = found, f"{self.state.kept}{_RECALIBRATED}"
        return twin

    def _with_own_norms(self, model: nn.Module) -> nn.Module | None:
        """A copy whose batch norms have the statistics of its own weights; None where there are no mini-batches."""
        given = self._norms_set_from
        return recalibrate_(copied(model), [match_dtype(model, one) for one in given]) if given else None

    @cached_property
    def _norms_set_from(self) -> list[Batch]:
        """Mini-batches on the device that batch norms are set from at the end, drawn once for all networks."""
        stream = ResumableLoader(self.epochs, self.settings.seed)
        given: list[Batch] = []
        for _ in range(_BATCHES):
            batch = stream.take()
            if batch.size > 1:  # of a single sample there may be no statistics
                given.append(self.engine.moved(batch))
            if sum(one.size for one in given) >= _CALIBRATION:
                break
        return given

    # Checkpoints

    def _save(self) -> None:
        if self.folder is None:
            return
        best = {f"best.{name}": tensor for name, tensor in self.best.items()}
        own = {f"student.{name}": tensor for name, tensor in self._copied(self.student).items()}
        tensors = {**own, **best, **self.average.tensors(), **self.stepping.tensors()}
        state = {
            "network": self.network,
            "asked": self._asked(),
            "places": self.material.place(),
            "state": {**asdict(self.state), "seconds": self._elapsed()},
        }
        save_checkpoint(self.folder / CHECKPOINT, tensors, state)

    def _asked(self) -> dict[str, Any]:
        asked = {"settings": self.settings.to_dict(), "budget": str(self.budget), "extra": self.extra is not None}
        return {**asked, "given": self.claim}

    def _resume(self) -> None:
        if self.folder is None or not (self.folder / CHECKPOINT).exists():
            return
        path = self.folder / CHECKPOINT
        tensors, kept = load_checkpoint(path)
        with resuming(path):
            check_same_network(path, kept, self.network)
            check_fingerprint(path, kept.get("asked", {}), self._asked())
            device = self.engine.device
            self.student.load_state_dict(_part(tensors, "student.", device), strict=False)
            self.best = _part(tensors, "best.", device)
            self.average.load(tensors)
            self.stepping.load(tensors)
            self.state = _State(**kept["state"])
            self.material.go_to(kept["places"])
        self.resumed = True


def _part(tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tensor.to(device) for name, tensor in own.items()}
