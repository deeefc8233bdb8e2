"""Distillation: a student learns to reproduce its teacher's outputs within a budget, and cannot come out worse.

Labels are not needed: the teacher labels every sample, augmented and mixed, and the loss is how far the student is off
(KL of the outputs, squared error of the features). The result is whatever was nearest to the teacher on validation
samples: weights averaged over the latest steps, rarely those of a single step, or the initial ones.
"""

import math
import secrets
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, device_of, first_samples
from shoal.deprecated import Keywords, former_keywords
from shoal.errors import UsageError, check_no_overlap, expect_type, naming_memory_shortage
from shoal.files.jsonl import JsonlFile
from shoal.files.locking import holding
from shoal.intake import check_device, check_network
from shoal.measure import Reading, reading_of
from shoal.plan import Replace
from shoal.preserve import copied
from shoal.progress import Callbacks, ProgressCallback, as_callbacks, former_callbacks
from shoal.record import Recovery, RecoveryEvaluation
from shoal.recover.checkpoint import check_fingerprint, ensure_dir, fingerprint
from shoal.recover.config import DistillConfig
from shoal.recover.evaluation import TeacherKL, validation_samples
from shoal.recover.lora import check_lora, share_frozen_
from shoal.recover.lr_search import CANDIDATE_LRS, SAFE_LR, LrSearchResult, find_lr, steps_for, try_step
from shoal.recover.preflight import (
    check_cacheable,
    check_disjoint,
    check_in_memory,
    check_labelled,
    check_same_outputs,
    check_trainable,
    check_unlabelled,
)
from shoal.recover.recompute import recomputable_blocks
from shoal.recover.teacher_cache import TeacherCache
from shoal.recover.train_step import DistillStep, has_batch_norms, matching_blocks
from shoal.recover.trainable import from_trainable_, match_dtype, to_trainable_
from shoal.recover.weight_averaging import WeightAverage
from shoal.replace import recalibrate_
from shoal.store.checkpoint import check_same_network, load_checkpoint, resuming, save_checkpoint
from shoal.surgery import model_digest
from shoal.surgery.signature import state_of
from shoal.training.budget import TrainingBudget, read_budget
from shoal.training.engine import Engine, favours_channels_last, take_layout_, warn_of_slow_precision
from shoal.training.loaders import LoaderFactory, MixedLoader, ResumableLoader, loader_factory
from shoal.training.loop import BudgetLoop, LoopState
from shoal.training.metrics import MetricsLog
from shoal.training.optim import ClippedOptimizer, cosine_lr, optimizer_for
from shoal.training.processes import leads
from shoal.training.sharding import load_shards, remove_shards, save_shards, whole_state

CHECKPOINT = "recovery.safetensors"
METRICS = "recovery.jsonl"
# Far above the loss of the first mini-batch: the student no longer learns, it falls apart. A high rate may well double
# the loss for a while.
_DIVERGED_FACTOR, _DIVERGED_OFFSET = 4.0, 2.0
# Nats: a divergence that rounding alone makes.
_ROUNDING = 1e-6
_EVALUATION_SHARE = 0.2  # of a budget of time may go into evaluations
_CALIBRATION_SAMPLES = 1024  # that batch norms are set from, before the first step and at the end
_CALIBRATION_BATCHES = 48  # read for that, at most
_RECALIBRATED = ", batch norms recalibrated"
_RECORD_EVERY = 10  # steps between two readings of the loss where that makes the device wait


@dataclass(frozen=True)
class DistillResult:
    """The student that came out, in eval mode, and what happened."""

    model: nn.Module
    recovery: Recovery
    warnings: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class DistillData:
    """What a student learns from, where bare mini-batches do not say it all.

    Args:
        training: mini-batches (labels are not needed), read repeatedly; or a function that returns the loader of an
            epoch, from 1, so that each epoch is augmented anew.
        unlabelled: extra mini-batches of the same form, in the way of `training`.
        replaced: of the student's plan: its replacements learn as shortcut plus residual with a batch norm, see
            `make_trainable_`, and come out as the plan says.
        norm_batches: mini-batches that these batch norms are set from: the first 1,024 samples.
        reading: how outputs are read, and which count; by default all, as the labels or the teacher's class tell.
    """

    training: Iterable[Any] | LoaderFactory
    unlabelled: Iterable[Any] | LoaderFactory | None = None
    replaced: Sequence[Replace] = ()
    norm_batches: Sequence[Batch] = ()
    reading: Reading | None = None


_DATA_KEYWORDS = {name: name for name in ("training", "unlabelled", "replaced", "reading")} | {"known": "norm_batches"}
FORMER_KEYWORDS = (*_DATA_KEYWORDS, "settings", "device", "progress")


def from_former_keywords(former: Keywords, keywords: Keywords) -> Keywords:
    """Today's keywords of distill() for those of version 0.1.0: data, a configuration and callbacks.

    Raises:
        UsageError: former and new ones for the same.
    """
    typed: Keywords = {}
    details = {now: former[name] for name, now in _DATA_KEYWORDS.items() if name in former}
    data = keywords.get("data")
    if details:
        check_no_overlap(["data"] if "training" in details or isinstance(data, DistillData) else [], keywords)
        keywords = {**keywords, "data": DistillData(**{"training": data, **details})}
    if former.keys() & {"settings", "device"}:
        typed["config"] = replace(former.get("settings") or DistillConfig(), device=former.get("device"))
    typed |= former_callbacks(former)
    check_no_overlap(typed, keywords)
    return {**keywords, **typed}


@former_keywords(
    FORMER_KEYWORDS,
    from_former_keywords,
    "write distill(student, teacher, data, validation=..., budget=..., config=shoal.DistillConfig(...), "
    "callbacks=...), with shoal.DistillData(training, unlabelled=...) as data where it says more",
)
@naming_memory_shortage()
def distill(
    student: nn.Module,
    teacher: nn.Module,
    data: Iterable[Any] | LoaderFactory | DistillData,
    *,
    validation: Iterable[Any],
    budget: str | int | TrainingBudget = "5m",
    config: DistillConfig | None = None,
    callbacks: Callbacks | ProgressCallback | None = None,
    folder: str | Path | None = None,
) -> DistillResult:
    """Train a copy of `student` to reproduce the outputs of `teacher`.

    A student in half precision learns in float32, and comes out in its own dtypes.

    Args:
        student: any network; it is left as it was.
        teacher: any network with the same outputs; likewise.
        data: mini-batches to learn from (labels are not needed), or a function that returns the loader of an epoch; a
            `DistillData` says more, such as unlabelled extra data.
        validation: other mini-batches; what comes out is chosen on them. Keep them apart from test too.
        budget: `10m`, `90s`, or a number of steps.
        config: how the student learns, and where.
        callbacks: progress; a function is called with (stage, done, total).
        folder: for checkpoint and metrics, created if it is missing; an unfinished run there is resumed. None: neither
            is kept.

    Returns:
        A student that is at least as near to the teacher on validation as the one given.

    Raises:
        UsageError: a budget too short for one step, or no budget; validation data that is the training data; a network
            that is offloaded; the folder holds a checkpoint made with other settings.
        DataError: a teacher with other outputs, unlabelled data of another form, labels that are missing or do not fit
            where `config.labels` needs them, or no data.
        NonFiniteError, ModelRaisedError: networks or data at fault.
        WeightsError: the folder holds the checkpoint of other networks, or of other validation samples.
        FolderError: the folder cannot be made, or the disk is full; the checkpoint before is still there.
    """
    check_network(student, "student")
    check_network(teacher, "teacher")
    config = expect_type(
        DistillConfig() if config is None else config, DistillConfig, "config", "Like shoal.DistillConfig(seed=1)."
    )
    if not isinstance(data, DistillData):
        data = DistillData(data)
    read = read_budget(budget)
    if read is None:
        raise UsageError("the budget of the distillation is none", "Give a time (10m) or a number of steps (2000).")
    check_disjoint(validation, training=data.training, unlabelled=data.unlabelled)
    for network in (student, teacher):
        check_in_memory(network)
    check_trainable(student)
    check_lora(student, config.lora)
    path = ensure_dir(folder) if folder is not None else None
    where = config.device if config.device is not None else str(next(student.parameters()).device)
    check_device(where)
    warn_of_slow_precision(config.precision, torch.device(where), read)
    with learning(path if leads(where) else None, where, config.seed):
        inputs = DistillInputs.of(student, teacher, data, validation)
        return Distillation(inputs, read, config, where, path, as_callbacks(callbacks).progress).distill()


@contextmanager
def learning(folder: Path | None, device: str, seed: int) -> Iterator[None]:
    """What surrounds a run: its folder is locked, gradients are on, the caller's random numbers stay as they are."""
    with (
        holding(folder),
        torch.inference_mode(mode=False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=_drawing(device)),
    ):
        torch.manual_seed(seed)  # for loaders that shuffle validation: a resumed run sees the same
        yield


def _drawing(device: str) -> list[int]:
    """The devices whose random numbers are used up."""
    cuda = torch.device(device)
    if cuda.type != "cuda":
        return []
    return [cuda.index if cuda.index is not None else torch.cuda.current_device()]


@dataclass(frozen=True, eq=False)
class DistillInputs:
    """What `distill` works with; arguments as there."""

    student: nn.Module
    teacher: nn.Module
    training: LoaderFactory
    validation: Iterable[Any]
    unlabelled: LoaderFactory | None
    replaced: Sequence[Replace]
    norm_batches: Sequence[Batch]
    reading: Reading | None

    @classmethod
    def of(
        cls, student: nn.Module, teacher: nn.Module, data: DistillData, validation: Iterable[Any]
    ) -> "DistillInputs":
        """With the loader of each epoch."""
        unlabelled = loader_factory(data.unlabelled) if data.unlabelled is not None else None
        training = loader_factory(data.training)
        return cls(student, teacher, training, validation, unlabelled, data.replaced, data.norm_batches, data.reading)


@dataclass
class DistillState(LoopState):
    """How far a distillation is, besides tensors and the positions of its loaders; part of its checkpoint."""

    lr: float = 0.0
    lr_tried: dict[str, float | None] = field(default_factory=dict)
    start_share: float = 0.0  # of the budget, used up before the first step
    num_evaluations: int = 0
    divergence_before: float = math.nan
    best_divergence: float = math.nan
    best_step: int = 0
    kept: str = "the weights it began with"
    lowest_divergence: float = math.nan  # of an evaluation
    num_worse: int = 0  # evaluations in a row
    first_loss: float = math.nan
    loss_sum: float = 0.0  # since the last evaluation
    num_losses: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, under the names that checkpoints have for it."""
        return {_STATE_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DistillState":
        """What `to_dict` returned."""
        names = {key: name for name, key in _STATE_KEYS.items()}
        return cls(**{names.get(key, key): value for key, value in values.items()})


@dataclass(frozen=True)
class _Shared:
    """What several processes agreed on after a step."""

    elapsed: float = 0.0
    asked: bool = False


_STATE_KEYS = {
    "lr": "rate",
    "lr_tried": "tried",
    "start_share": "began",
    "num_evaluations": "looks",
    "evaluations": "looked",
    "divergence_before": "before",
    "best_divergence": "best",
    "lowest_divergence": "lowest",
    "num_worse": "worse",
    "first_loss": "first",
    "loss_sum": "loss",
    "num_losses": "since",
    "stop_reason": "stopped",
}


class Distillation(BudgetLoop):
    """One run of `distill`."""

    state: DistillState

    def __init__(
        self,
        inputs: DistillInputs,
        budget: TrainingBudget,
        settings: DistillConfig,
        device: str,
        folder: Path | None,
        on_progress: ProgressCallback,
    ) -> None:
        super().__init__(budget, settings.looks, DistillState(), on_progress)
        self.settings, self.folder, self.inputs_folder = settings, folder, folder
        channels_last = settings.channels_last
        if channels_last is None:
            channels_last = favours_channels_last(inputs.student, device)
        self.engine = Engine(device, settings.precision, channels_last=channels_last, shard=settings.shard)
        self.inputs = inputs
        if not self.engine.is_main:
            self.folder = None
        self._shared = _Shared()
        self.record_every = 1 if self.engine.device.type == "cpu" else _RECORD_EVERY
        teacher = self.engine.placed(inputs.teacher).eval().requires_grad_(requires_grad=False)
        self.teacher = self.engine.sharded(teacher)
        self.prepare_student(inputs)
        self.optimizer_name = optimizer_for(self.student) if settings.optimizer == "auto" else settings.optimizer
        self.features_weight = settings.weight_of_features(self.optimizer_name)
        self.loader_factory = inputs.training
        self.loader = self.new_mixed_loader()
        samples = validation_samples(inputs.validation, settings.validation_images)
        reading = self.read_outputs_as(inputs.reading, samples)
        self.warnings = reading.learning_warnings
        self.cache = self.open_cache(reading.differentiable())
        self.teacher_kl = TeacherKL(self.teacher, samples, self.engine, reading.differentiable(), self.cache)
        self.fingerprint = fingerprint(inputs.student, inputs.teacher, samples) if folder is not None else {}
        self.resumed = False

    def open_cache(self, reading: Reading) -> TeacherCache | None:
        """What the teacher says, on disk, where that was asked for.

        Raises:
            UsageError: no folder, or a budget of time.
        """
        top_k, folder = self.settings.cache_teacher, self.inputs_folder
        check_cacheable(top_k, self.budget, folder)
        if not top_k or folder is None:
            return None
        digest = model_digest(self.inputs.teacher)[:16]
        return TeacherCache(folder, self.teacher, digest, self.engine, reading, top_k)

    def new_mixed_loader(self) -> MixedLoader:
        """The training data from its start, with the unlabelled data, if there is any."""
        extra = self.inputs.unlabelled
        unlabelled = ResumableLoader(extra, self.settings.seed + 1, "unlabelled") if extra is not None else None
        return MixedLoader(self.new_loader(), unlabelled, self.settings.unlabelled_share)

    def new_loader(self) -> ResumableLoader:
        """The training data from its start."""
        return ResumableLoader(self.loader_factory, self.settings.seed)

    def read_outputs_as(self, reading: Reading | None, samples: Sequence[Batch]) -> Reading:
        """How outputs are read: as passed, or as the labels of validation or training tell."""
        if reading is not None and reading.scaled:
            return reading
        moved = [match_dtype(self.teacher, self.engine.moved(batch)) for batch in samples]
        labelled = [] if any(batch.target is not None for batch in samples) else [self.new_loader().next_batch()]
        return reading_of(
            self.teacher, moved, labelled=[match_dtype(self.teacher, self.engine.moved(batch)) for batch in labelled]
        )

    def prepare_student(self, inputs: DistillInputs) -> None:
        """The student in the format in which it learns, and the original, where that has another format."""
        original = self.engine.placed(inputs.student).eval()
        self.student = copied(original)
        self.replaced = inputs.replaced
        replacements = {action.paths[0]: action.stand_in for action in inputs.replaced}
        batches = first_samples(inputs.norm_batches, _CALIBRATION_SAMPLES)
        self.format = to_trainable_(
            self.student,
            replacements,
            [self.engine.moved(batch).to(device_of(self.student)) for batch in batches],
            self.settings.lora,
            measured=not self.has_checkpoint(),  # a checkpoint holds the statistics
        )
        self.frozen: frozenset[str] = frozenset()  # what no step changes: one copy of it serves everybody
        if self.format.adapters is not None:
            share_frozen_(self.student, self.teacher)
            names = (name for name, parameter in self.student.named_parameters() if not parameter.requires_grad)
            self.frozen = frozenset(names)
        self.original = original if self.format.changed else None

    # The whole run

    def distill(self) -> DistillResult:
        """From the checks to the student that comes out."""
        with self.engine.naming_lost_processes():
            self.setup()
            try:
                self.fill_cache()
                if not self.resumed:
                    self.start()
                self.run()
                return self.result()
            finally:
                self.metrics.close()

    def setup(self) -> None:
        """Check that networks and data fit together, prepare the training, resume a checkpoint."""
        if self.engine.shard:  # the networks run on the device once they are divided
            example = self.new_loader().next_batch().take(2)
        else:
            self.first_batch = self.checked_batch()
            example = self.first_batch.take(2)
        compared = self.compared_blocks(example)
        recomputed: Sequence[str] = ()
        if self.settings.checkpointing:
            recomputed = recomputable_blocks(self.student, example.to(device_of(self.student)))
        self.signature = state_of(self.student)
        self.average = WeightAverage(self.student)
        share_frozen_(self.average.network, self.student)
        if self.engine.shard:
            self.divide_networks()
            self.first_batch = self.checked_batch()
        self.distill_step = DistillStep(
            self.teacher,
            compared,
            self.settings,
            self.engine,
            features=self.features_weight,
            reading=self.teacher_kl.reading,
            unlabelled=self.inputs.unlabelled is not None,
            cache=self.cache,
        )
        self.distill_step.recomputed = recomputed
        self.optimizer = self.new_optimizer(self.student)
        self.best_weights = copied_state(self.student, self.frozen)
        self.metrics = MetricsLog(RecoveryEvaluation, "step", self.metrics_file())
        self.resume(self.inputs_folder)
        self.metrics.resume(self.state.step if self.resumed else -1)

    def divide_networks(self) -> None:
        """Divide all that learns over the processes; a whole student is kept to return."""
        self.whole = copied(self.student)
        for network in (self.student, self.average.network, self.original):
            if network is not None:
                self.engine.sharded(network)

    def metrics_file(self) -> JsonlFile | None:
        """Where evaluations are logged, if anywhere."""
        return JsonlFile(self.folder / METRICS) if self.folder is not None else None

    def checked_batch(self) -> Batch:
        """The first training mini-batch, on the device; all inputs fit together."""
        first = self.engine.moved(self.new_loader().next_batch())
        check_labelled(first, self.settings.labels)
        for network in (self.original, self.student):
            if network is not None:
                check_same_outputs(self.teacher, network, first.take(2))
        if self.inputs.unlabelled is not None:
            extra = ResumableLoader(self.inputs.unlabelled, self.settings.seed, "unlabelled").next_batch()
            check_unlabelled(self.engine.moved(extra), first)
        return first

    def fill_cache(self) -> None:
        """Have the teacher's outputs for all steps on disk; meanwhile the student is not on the device."""
        if self.cache is None or self.budget.steps is None:
            return
        learning = [network for network in (self.student, self.average.network, self.original) if network is not None]
        for network in learning:
            network.to("cpu")
        if self.engine.is_main:
            self.teacher_kl.keep_outputs()
        loader = self.new_mixed_loader()
        loader.seek(self.loader.position())
        for step in range(self.state.step, self.budget.steps):
            self.on_progress("keeping what the teacher says", step, self.budget.steps)
            self.distill_step.keep_outputs(loader.next_batch(step), step)
        self.cache.release()
        for network in learning:
            network.to(self.engine.device)

    def compared_blocks(self, example: Batch) -> list[str]:
        """The blocks whose features are compared."""
        if not self.features_weight:
            return []
        teacher = self.inputs.teacher if self.engine.shard else self.teacher
        return matching_blocks(teacher, self.student, example.to(device_of(self.student)), self.replaced)

    def new_optimizer(self, model: nn.Module) -> ClippedOptimizer:
        """For the student, or a copy of it."""
        return ClippedOptimizer(model, self.optimizer_name, self.settings.decay, self.settings.clip)

    # Before the first step

    def start(self) -> None:
        """Measure where the student begins and how long a step takes; find the learning rate."""
        state = self.state
        started = time.perf_counter()
        # The teacher's outputs are cached from here on.
        state.divergence_before = self.divergence_of(self.student if self.original is None else self.original)
        evaluation_seconds = self.engine.on_main(lambda: time.perf_counter() - started)
        state.best_divergence = state.divergence_before
        if self.original is not None:
            state.best_divergence = self.divergence_of(self.student)
        self.share_state()
        if state.divergence_before <= _ROUNDING:
            state.stop_reason = "nothing"
            return
        step_seconds = self.try_steps()
        self.share_state()
        state.num_evaluations = self.num_evaluations = self.affordable_evaluations(evaluation_seconds)
        search = self.find_lr(step_seconds)
        state.lr, state.lr_tried = search.lr, search.losses
        self.share_state()
        state.start_share = self.budget.spent(0, self.elapsed)
        state.evaluations = int(state.start_share * state.num_evaluations)
        self.metrics.append(
            RecoveryEvaluation(step=0, seconds=self.elapsed, rate=state.lr, divergence=state.divergence_before)
        )

    def try_steps(self) -> float:
        """What a step takes, in seconds, by two steps of a copy; refuses a budget too short for one."""
        trial = self.student if self.engine.shard else copied(self.student)
        tries = [try_step(trial, self.distill_step, self.first_batch, self.new_optimizer(trial)) for _ in range(2)]
        if self.engine.shard:  # what is divided cannot be copied; the rate was zero, and statistics are put back
            trial.load_state_dict(self.best_weights, strict=False)
        seconds = self.engine.on_main(lambda: min(seconds for seconds, _ in tries))
        self.state.first_loss = tries[0][1]
        if self.budget.seconds is not None and seconds > self.budget.seconds - self.elapsed:
            raise UsageError(
                f"a budget of {self.budget} is too short for one step: a step takes {seconds:.2g} seconds here, "
                f"the checks before it {self.elapsed:.2g}",
                f"Give at least {math.ceil(2 * self.elapsed + 10 * seconds)}s, or smaller mini-batches.",
            )
        return seconds

    def affordable_evaluations(self, seconds: float) -> int:
        """How often to evaluate: less often where an evaluation takes long."""
        requested = self.settings.looks
        if self.budget.steps is not None:
            return min(requested, self.budget.steps)
        return max(1, min(requested, int(_EVALUATION_SHARE * (self.budget.seconds or 0.0) / max(seconds, 1e-9))))

    def find_lr(self, step_seconds: float) -> LrSearchResult:
        """The learning rate of the settings, or by a short search on copies where the budget has room for it."""
        if self.settings.rate is not None:
            return LrSearchResult(self.settings.rate, {})
        num_steps = steps_for(self.budget, step_seconds, len(CANDIDATE_LRS[self.optimizer_name]))
        if not num_steps or self.engine.shard:
            return LrSearchResult(SAFE_LR[self.optimizer_name], {})
        loader = self.new_loader()

        def on_lr(done: int, total: int) -> None:
            self.on_progress("finding the learning rate", done, total)

        return find_lr(
            self.student,
            self.distill_step,
            [loader.next_batch() for _ in range(num_steps)],
            self.optimizer_name,
            self.new_optimizer,
            on_lr,
        )

    # Steps and evaluations

    def train_step(self) -> int:
        """One mini-batch; returns its number of samples."""
        batch = self.loader.next_batch(self.state.step)
        self.lr = cosine_lr(self.schedule_position(), self.state.lr, self.settings.warm_up)
        self.loss = self.distill_step.step(self.student, self.optimizer, batch, self.state.step, self.lr)
        self.average.update(self.student)
        return batch.size

    def schedule_position(self) -> float:
        """The share of what the rate's search has left of the budget, in the middle of the coming step."""
        if self.budget.steps is not None:
            return (self.state.step + 0.5) / self.budget.steps
        start = min(self.state.start_share, 0.99)
        return (self.budget.spent(self.state.step, self.elapsed) - start) / (1 - start)

    # Several processes decide by what the first one sees

    @property
    def elapsed(self) -> float:
        """Seconds so far; of several processes by the clock of the first one, as it was shared last."""
        return super().elapsed if self.engine.processes == 1 else self._shared.elapsed

    def share_state(self) -> None:
        """Take over the clock of the first process, and whether any was asked to end."""
        if self.engine.processes > 1:
            mine = [super().elapsed if self.engine.is_main else 0.0, float(self.termination.asked)]
            elapsed, asked = self.engine.summed(torch.tensor(mine, dtype=torch.float64)).tolist()
            self._shared = _Shared(elapsed, asked > 0)

    def is_terminated(self) -> bool:
        """Whether the system asked this process to end, or another of those that learn together."""
        return super().is_terminated() if self.engine.processes == 1 else self._shared.asked

    def before_leaving(self) -> None:
        """Save a checkpoint."""
        self.save()

    def divergence_of(self, network: nn.Module) -> float:
        """How far a network is from the teacher on validation; measured by the first process, or by all together."""
        if not self.engine.shard:
            return self.engine.on_main(lambda: self.teacher_kl.evaluate(network))
        divergence = self.teacher_kl.evaluate(self.engine.sharded(network))
        return self.engine.on_main(lambda: divergence)

    def after_step(self) -> None:
        """Read the loss, now and then: on an accelerator that waits for the step to end."""
        self.share_state()
        super().after_step()
        state = self.state
        if state.step % self.record_every == 0 or (self.is_evaluation_due() and not state.num_losses):
            loss = float(self.loss)
            if not math.isfinite(loss):
                state.stop_reason = "diverged"
            state.loss_sum += loss
            state.num_losses += 1

    def is_evaluation_due(self) -> bool:
        """Also as soon as the loss has diverged."""
        return super().is_evaluation_due() or bool(self.state.stop_reason)

    def report_progress(self) -> None:
        """In steps or seconds of the budget."""
        unit, done, total = self.budget.progress(self.state.step, self.elapsed)
        self.on_progress(f"recovering ({unit})", done, total)

    def evaluate(self) -> None:
        """Evaluate the averaged weights, keep the best, apply the stopping rule, log, save."""
        state = self.state
        mean_loss, divergence = state.loss_sum / max(1, state.num_losses), math.nan
        if mean_loss > _DIVERGED_FACTOR * state.first_loss + _DIVERGED_OFFSET:
            state.stop_reason = "diverged"
        self.count_evaluation()
        if not state.stop_reason:
            divergence = self.evaluate_weights(self.average.network, "averaged weights")
            # Against the evaluations before, not against where it began: a high rate first shakes the network up.
            improved = not divergence >= state.lowest_divergence
            state.lowest_divergence = divergence if improved else state.lowest_divergence
            state.num_worse = 0 if improved else state.num_worse + 1
            if self.spent >= 1:
                self.evaluate_weights(self.student, "the last step's weights")
                self.evaluate_recalibrated()
            state.stop_reason = state.stop_reason or self.stop_reason()
        row = RecoveryEvaluation(
            step=state.step,
            seconds=self.elapsed,
            rate=self.lr,
            loss=mean_loss if math.isfinite(mean_loss) else None,
            divergence=divergence if math.isfinite(divergence) else None,
        )
        state.loss_sum, state.num_losses = 0.0, 0
        self.metrics.append(row, best=state.best_divergence, stopped=state.stop_reason or None)
        self.save()

    def evaluate_weights(self, network: nn.Module, name: str) -> float:
        """The divergence of a network, which is kept as the best so far if it is."""
        state = self.state
        divergence = self.divergence_of(network)
        if not math.isfinite(divergence):
            state.stop_reason = "diverged"
        if divergence < state.best_divergence:
            state.best_divergence, state.best_step, state.kept = divergence, state.step, name
            self.best_weights = copied_state(network, self.frozen)
        return divergence

    def stop_reason(self) -> str:
        """The stopping rule: the budget is used up, or nothing was won for `patience` evaluations; empty: go on."""
        if self.spent >= 1:
            return "budget"
        return "early" if self.state.num_worse >= self.settings.patience else ""

    # What comes out

    def result(self) -> DistillResult:
        """The best student, in its original format, and the record of the run."""
        state = self.state
        model = self.student
        model.load_state_dict(self.best_weights, strict=False)
        model.eval()
        if has_batch_norms(model) and state.best_step and _RECALIBRATED not in state.kept:
            model = self.recalibrated_if_better(model)
        if self.engine.shard:
            self.whole.load_state_dict(whole_state(model), strict=False)
            model = self.whole.eval()
        model = take_layout_(self.restore_format(model), self.inputs.student)
        recovery = Recovery(
            budget=str(self.budget),
            steps=state.step,
            samples=state.samples,
            seconds=self.elapsed,
            rate=state.lr,
            rates_tried=state.lr_tried,
            optimizer=self.optimizer_name,
            divergence_before=state.divergence_before,
            divergence_after=state.best_divergence,
            n=self.teacher_kl.n,
            stopped=state.stop_reason,  # type: ignore[arg-type]
            kept=state.kept,
            kept_step=state.best_step,
            features=len(self.distill_step.paths),
            features_weight=self.features_weight,
            rewritten=len(self.format.rewritten),
            resumed=self.resumed,
            processes=self.engine.processes,
            teacher_cache=self.cache.record() if self.cache is not None else None,
            settings=self.settings.to_dict(),
            curve=self.metrics.rows,
        )
        return DistillResult(model, recovery, self.warnings)

    def restore_format(self, model: nn.Module) -> nn.Module:
        """In the original format, and evaluated in it: what is rounded on the way back must not make it worse."""
        state = self.state
        if self.original is None:
            return model
        divergence = math.nan
        if state.best_step:
            model = from_trainable_(model, self.format)
            divergence = self.divergence_of(copied(model) if self.engine.shard else model)
        if divergence < state.divergence_before:
            state.best_divergence = divergence
            return model
        state.best_divergence, state.best_step, state.kept = state.divergence_before, 0, DistillState.kept
        return self.engine.placed(self.inputs.student).eval() if self.engine.shard else self.original

    def evaluate_recalibrated(self) -> None:
        """In a short run statistics lag behind the weights: good weights may look bad until theirs are estimated."""
        for network, name in ((self.average.network, "averaged weights"), (self.student, "the last step's weights")):
            if has_batch_norms(network) and (recalibrated := self.recalibrated(network)) is not None:
                self.evaluate_weights(recalibrated, f"{name}{_RECALIBRATED}")

    def recalibrated_if_better(self, model: nn.Module) -> nn.Module:
        """With batch-norm statistics of samples that were not mixed and these very weights, where that is nearer."""
        recalibrated = self.recalibrated(model)
        divergence = self.divergence_of(recalibrated) if recalibrated is not None else math.nan
        if recalibrated is None or not divergence < self.state.best_divergence:
            return model
        self.state.best_divergence, self.state.kept = divergence, f"{self.state.kept}{_RECALIBRATED}"
        return recalibrated

    def recalibrated(self, model: nn.Module) -> nn.Module | None:
        """A copy whose batch norms have the statistics of its own weights; None where none can be made."""
        if self.engine.shard:
            return None
        calibration = [match_dtype(model, batch) for batch in self.calibration]
        return recalibrate_(copied(model), calibration) if calibration else None

    @cached_property
    def calibration(self) -> list[Batch]:
        """Mini-batches on the device that batch norms are estimated on at the end, drawn once for all networks."""
        loader = self.new_loader()
        calibration: list[Batch] = []
        for _ in range(_CALIBRATION_BATCHES):
            batch = loader.next_batch()
            if batch.size > 1:  # of a single sample there may be no statistics
                calibration.append(self.engine.moved(batch))
            if sum(batch.size for batch in calibration) >= _CALIBRATION_SAMPLES:
                break
        return calibration

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint, if the run has a folder; of what is divided each process writes its part."""
        folder = self.inputs_folder if self.engine.shard else self.folder
        if folder is None:
            return
        tensors = {
            **{f"student.{name}": tensor for name, tensor in copied_state(self.student, self.frozen).items()},
            **{f"best.{name}": tensor for name, tensor in self.best_weights.items()},
            **self.average.tensors(),
            **self.optimizer.tensors(),
        }
        header: dict[str, Any] = {
            "network": self.signature,
            "asked": {**self.identity(), "given": {name: digests[0] for name, digests in self.fingerprint.items()}},
            "places": self.loader.position(),
            "processes": self.engine.processes,
            "state": {**self.state.to_dict(), "seconds": self.elapsed},
        }
        if self.engine.shard:
            # A name of its own: the checkpoint before stays whole until this one is.
            token = self.engine.on_main(lambda: secrets.token_hex(4))
            header["shards"] = save_shards(folder, f"step-{self.state.step}-{token}", tensors)
            tensors = {}
        if self.folder is not None:
            save_checkpoint(self.folder / CHECKPOINT, tensors, header)
            if self.engine.shard:
                remove_shards(self.folder, keep=header["shards"])

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with."""
        extra = self.inputs.unlabelled is not None
        # Where the layout is not chosen, version 0.1.0 wrote False.
        settings = self.settings.to_dict() | {"channels_last": bool(self.settings.channels_last)}
        return {"settings": settings, "budget": str(self.budget), "extra": extra}

    def has_checkpoint(self) -> bool:
        """Whether the folder holds one to continue from."""
        folder = self.inputs_folder
        return folder is not None and self.engine.on_main((folder / CHECKPOINT).exists)

    def resume(self, folder: Path | None) -> None:
        """Continue from the checkpoint in the folder, if there is one; each of several processes reads it."""
        if folder is None or not self.has_checkpoint():
            return
        path = folder / CHECKPOINT
        tensors, header = load_checkpoint(path)
        with resuming(path):
            check_same_network(path, header, self.signature)
            check_fingerprint(path, header.get("asked", {}), self.identity(), self.fingerprint)
            if "shards" in header:
                tensors = load_shards(folder / header["shards"], self.student.state_dict())
            device = self.engine.device
            self.student.load_state_dict(_with_prefix(tensors, "student.", device), strict=False)
            self.best_weights = _with_prefix(tensors, "best.", device)
            self.average.load(tensors)
            self.optimizer.load(tensors)
            self.state = DistillState.from_dict(header["state"])
            self.num_evaluations = self.state.num_evaluations
            self.loader.seek(header["places"])
            before = int(header.get("processes", 1))
        self._shared = _Shared(self.state.seconds)
        if before != self.engine.processes:
            self.warnings = [
                *self.warnings,
                f"the run was begun by {before} and continued by {self.engine.processes} processes: each mini-batch is"
                " the same, divided otherwise",
            ]
        self.resumed = True


def copied_state(network: nn.Module, frozen: Collection[str] = ()) -> dict[str, Tensor]:
    """Copies of all tensors of the state dict, and those named `frozen` themselves: they do not change."""
    return {
        name: tensor.detach() if name in frozen else tensor.detach().clone()
        for name, tensor in network.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str, device: torch.device) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor.to(device) for name, tensor in tensors.items() if name.startswith(prefix)}
