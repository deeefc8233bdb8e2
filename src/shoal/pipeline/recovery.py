"""Recovery of a compressed network: its configuration, what is refused, and when a mere default is skipped."""

from collections.abc import Iterable, Sequence
from dataclasses import InitVar, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from shoal.arguments import flag, path_or_none, whole_number
from shoal.batches import Batch, batches, device_of
from shoal.deprecated import warn_renamed
from shoal.errors import (
    DataError,
    ModelRaisedError,
    NonFiniteError,
    OutOfMemoryError,
    ShoalError,
    SurgeryError,
    UsageError,
    expect_type,
)
from shoal.measure import Reading
from shoal.pipeline.self_data import check_self_data, write_self_data
from shoal.plan import Fold, Remove, Replace
from shoal.progress import ProgressCallback
from shoal.recover import DistillConfig, DistillData, DistillResult, TrainingBudget, distill, read_budget
from shoal.recover.checkpoint import ensure_dir
from shoal.recover.lora import check_lora
from shoal.recover.preflight import (
    check_cacheable,
    check_disjoint,
    check_in_memory,
    check_trainable,
    check_unlabelled,
)
from shoal.recover.rungs import PausedStudent
from shoal.training.engine import check_precision, warn_of_slow_precision
from shoal.training.loaders import LoaderFactory, loader_factory

RACE_PLANS = 16
"""How many plans contend, where nothing else is asked for and the budget allows it."""


@dataclass(frozen=True, eq=False)
class RecoveryConfig:
    """How to win back what a compressed network has lost.

    Args:
        budget: `10m`, `90s`, or a number of steps.
        settings: of the distillation.
        training: what to learn from: mini-batches, or a function that gives those of an epoch, from 1; by default the
            calibration data as it was given.
        unlabelled: extra mini-batches of the same form, in the same way.
        self_data: how many sequences the original, a causal language model, writes itself: from the beginnings of
            calibration sequences, sampled at temperature 1, as unlabelled data; 0 for none.
        folder: keeps the network before recovery, checkpoints and metrics: the same call resumes from there.
        race: for a `Budget`, how many plans contend, at most: they are distilled briefly, the better half goes on, and
            what that takes is part of `budget`; 0 takes the plan of least damage after a refit.
        required: a recovery that cannot be done is an error. False for a mere default: then the network stays as it
            is, and the notes say why.
        try_plans: the former name of `race`.
    """

    budget: str | int | TrainingBudget = "5m"
    settings: DistillConfig | None = None
    training: Iterable[Any] | LoaderFactory | None = None
    unlabelled: Iterable[Any] | LoaderFactory | None = None
    folder: str | Path | None = None
    race: int = RACE_PLANS
    required: bool = True
    self_data: int = 0
    try_plans: InitVar[int | None] = None

    def __post_init__(self, try_plans: int | None) -> None:
        if try_plans is not None:
            warn_renamed("RecoveryConfig(try_plans=...)", "race")
            object.__setattr__(self, "race", whole_number("try_plans", try_plans, 0, "Write race instead."))
        whole_number("race", self.race, 0, "It is a number of plans; 0 for no race.")
        whole_number("self_data", self.self_data, 0, "It is a number of sequences; 0 for none.")
        flag("required", self.required)
        path_or_none("folder", self.folder)
        read_budget(self.budget)
        if self.settings is not None:
            expect_type(self.settings, DistillConfig, "settings", "Leave it out.")
        if self.self_data and self.unlabelled is not None:
            raise UsageError("self_data and unlabelled both say what the extra data is", "Leave out one of the two.")

    @property
    def total(self) -> TrainingBudget:
        """The budget as a value; one of `none` never comes here, see `normalize_recovery`."""
        budget = read_budget(self.budget)
        if budget is None:
            raise UsageError("the recovery has no budget", "Give a time (10m) or a number of steps (2000).")
        return budget

    @property
    def path(self) -> Path | None:
        """The folder, made if it is missing.

        Raises:
            FolderError: it cannot be made.
        """
        return ensure_dir(self.folder) if self.folder is not None else None


def normalize_recovery(recovery: RecoveryConfig | TrainingBudget | str | int | None) -> RecoveryConfig | None:
    """What was asked for, its data such that it can be read again and again; None for no recovery.

    Raises:
        UsageError: a budget that is none.
    """
    if not isinstance(recovery, RecoveryConfig):
        recovery = RecoveryConfig(recovery) if recovery is not None else None
    if recovery is None or read_budget(recovery.budget) is None:
        return None
    training, unlabelled = (
        loader_factory(data) if data is not None else None for data in (recovery.training, recovery.unlabelled)
    )
    return replace(recovery, training=training, unlabelled=unlabelled)


# Why a recovery that nobody asked for may be skipped: it does not go with the arguments, or is too much for network or
# machine. A full disk, damaged files and faults of the program itself are always raised.
REASONS_TO_SKIP = (UsageError, DataError, NonFiniteError, ModelRaisedError, SurgeryError, OutOfMemoryError)


def skip_or_raise(recovery: RecoveryConfig, error: ShoalError) -> str:
    """What is noted where a recovery by default is left out; one that was asked for raises.

    Args:
        recovery: what failed.
        error: one of `REASONS_TO_SKIP`.
    """
    if recovery.required:
        raise error
    lines = error.message.strip().splitlines()
    return f"not recovered: {lines[0] if lines else type(error).__name__}"


def check_recovery(
    recovery: RecoveryConfig, model: nn.Module, calibration: object, validation: object, example: Batch, *, exact: bool
) -> None:
    """Refuse what could only fail after the choice was made, which may have taken long.

    Args:
        recovery: as `normalize_recovery` returns it.
        model: the original.
        calibration: as it was given.
        validation: likewise; None for none.
        example: the first calibration mini-batch.
        exact: only what is proved to do nothing is removed.

    Raises:
        UsageError: no validation data, or the calibration data again; nothing to win back; a network on a disk; a
            precision that the device does not have.
        DataError: unlabelled data of another form, or none.
    """
    if exact:
        raise UsageError(
            "an exact removal loses nothing that could be won back, and recovery would change the function",
            "Leave out one of the two.",
        )
    settings = recovery.settings or DistillConfig()
    check_precision(settings.precision, device_of(model))
    warn_of_slow_precision(settings.precision, device_of(model), recovery.total)
    if validation is None:
        raise UsageError(
            "recovery needs validation data of its own: what comes out of it is chosen on them",
            "Give validation=loader, apart from the calibration and the test data.",
        )
    check_disjoint(validation, calibration=calibration)
    check_in_memory(model)
    check_trainable(model)
    check_lora(model, settings.lora)
    check_cacheable(settings.cache_teacher, recovery.total, recovery.folder)
    if recovery.self_data:
        check_self_data(model, example)
    if recovery.unlabelled is not None:
        first = next(batches(loader_factory(recovery.unlabelled)(1), example.tensors[0].device), None)
        if first is None:
            raise DataError("the unlabelled data is empty", "Leave it out.")
        check_unlabelled(first, example)


def with_self_data(recovery: RecoveryConfig, model: nn.Module, samples: Sequence[Batch]) -> RecoveryConfig:
    """The recovery with what the original writes itself as its unlabelled data, where it was asked for.

    Args:
        recovery: as `check_recovery` let it pass.
        model: the original; it is left as it was.
        samples: calibration mini-batches, whose sequences it goes on from.
    """
    if not recovery.self_data:
        return recovery
    seed = (recovery.settings or DistillConfig()).seed
    written = write_self_data(model, samples, recovery.self_data, seed)
    return replace(recovery, unlabelled=loader_factory(written), self_data=0)


@dataclass(frozen=True, eq=False)
class RecoveryTask:
    """A recovery with everything it needs but the network that learns.

    Args:
        config: how.
        teacher: the original; it is left as it was.
        calibration: what to learn from where `config` names nothing else.
        validation: what the network is chosen on.
        samples: calibration mini-batches on the device, that batch norms of replacements are set from.
        progress: called with (stage, done, total).
        reading: how outputs are read; None: as the data tells.
    """

    config: RecoveryConfig
    teacher: nn.Module
    calibration: Iterable[Any]
    validation: Iterable[Any]
    samples: Sequence[Batch]
    progress: ProgressCallback
    reading: Reading | None = None

    def run(
        self,
        student: nn.Module,
        actions: Sequence[Remove | Replace | Fold],
        budget: TrainingBudget | None = None,
    ) -> DistillResult:
        """Distill a copy of a network from the original; it comes back in the form of the plan.

        Args:
            student: it is left as it was.
            actions: of its plan.
            budget: what a race has left of that of `config`; None for all of it.
        """
        return distill(
            student,
            self.teacher,
            self._data(actions),
            validation=self.validation,
            budget=budget or self.config.budget,
            config=self._settings(student),
            callbacks=self.progress,
            folder=self.config.path,
        )

    def paused(
        self, student: nn.Module, actions: Sequence[Remove | Replace | Fold], folder: Path, total: int
    ) -> PausedStudent:
        """The network as a student that learns from rung to rung, `total` steps in all."""
        return PausedStudent(
            student,
            self.teacher,
            self._data(actions),
            self.validation,
            self._settings(student),
            folder,
            total,
            self.progress,
        )

    def _data(self, actions: Sequence[Remove | Replace | Fold]) -> DistillData:
        config = self.config
        return DistillData(
            config.training if config.training is not None else self.calibration,
            unlabelled=config.unlabelled,
            replaced=[action for action in actions if isinstance(action, Replace)],
            norm_batches=self.samples,
            reading=self.reading,
        )

    def _settings(self, student: nn.Module) -> DistillConfig:
        return replace(self.config.settings or DistillConfig(), device=str(device_of(student)))
