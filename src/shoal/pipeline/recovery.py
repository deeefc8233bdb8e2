"""Recovery of a compressed network: its configuration, what is refused, and when a mere default is skipped."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from shoal.arguments import flag, path_or_none, whole_number
from shoal.batches import Batch, batches, device_of
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
from shoal.pipeline.recovery_probe import RecoveryProbe
from shoal.plan import Fold, Remove, Replace
from shoal.progress import ProgressCallback
from shoal.recover import DistillConfig, DistillData, DistillResult, TrainingBudget, distill, read_budget
from shoal.recover.checkpoint import ensure_dir
from shoal.recover.preflight import check_disjoint, check_in_memory, check_trainable, check_unlabelled
from shoal.training.loaders import LoaderFactory, loader_factory

_PROBE_SHARE = 0.1  # of the budget, for each plan that is tried


@dataclass(frozen=True, eq=False)
class RecoveryConfig:
    """How to win back what a compressed network has lost.

    Args:
        budget: `10m`, `90s`, or a number of steps.
        settings: of the distillation.
        training: what to learn from: mini-batches, or a function that gives those of an epoch, from 1; by default the
            calibration data as it was given.
        unlabelled: extra mini-batches of the same form, in the same way.
        folder: keeps the network before recovery, checkpoints and metrics: the same call resumes from there.
        try_plans: for a `Budget`, distill this many of the best plans for a tenth of `budget` each, on top of it, and
            keep the best; 0 takes the plan of least damage.
        required: a recovery that cannot be done is an error. False for a mere default: then the network stays as it
            is, and the notes say why.
    """

    budget: str | int | TrainingBudget = "5m"
    settings: DistillConfig | None = None
    training: Iterable[Any] | LoaderFactory | None = None
    unlabelled: Iterable[Any] | LoaderFactory | None = None
    folder: str | Path | None = None
    try_plans: int = 0
    required: bool = True

    def __post_init__(self) -> None:
        whole_number("try_plans", self.try_plans, 0, "Leave it out.")
        flag("required", self.required)
        path_or_none("folder", self.folder)
        read_budget(self.budget)
        if self.settings is not None:
            expect_type(self.settings, DistillConfig, "settings", "Leave it out.")

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
        UsageError: no validation data, or the calibration data again; nothing to win back; a network on a disk.
        DataError: unlabelled data of another form, or none.
    """
    if exact:
        raise UsageError(
            "an exact removal loses nothing that could be won back, and recovery would change the function",
            "Leave out one of the two.",
        )
    if validation is None:
        raise UsageError(
            "recovery needs validation data of its own: what comes out of it is chosen on them",
            "Give validation=loader, apart from the calibration and the test data.",
        )
    check_disjoint(validation, calibration=calibration)
    check_in_memory(model)
    check_trainable(model)
    if recovery.unlabelled is not None:
        first = next(batches(loader_factory(recovery.unlabelled)(1), example.tensors[0].device), None)
        if first is None:
            raise DataError("the unlabelled data is empty", "Leave it out.")
        check_unlabelled(first, example)


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

    def run(self, student: nn.Module, actions: Sequence[Remove | Replace | Fold]) -> DistillResult:
        """Distill a copy of a network from the original; it comes back in the form of the plan.

        Args:
            student: it is left as it was.
            actions: of its plan.
        """
        config = self.config
        data = DistillData(
            config.training if config.training is not None else self.calibration,
            unlabelled=config.unlabelled,
            replaced=[action for action in actions if isinstance(action, Replace)],
            norm_batches=self.samples,
            reading=self.reading,
        )
        return distill(
            student,
            self.teacher,
            data,
            validation=self.validation,
            budget=config.budget,
            config=replace(config.settings or DistillConfig(), device=str(device_of(student))),
            callbacks=self.progress,
            folder=config.path,
        )

    def probe(self) -> RecoveryProbe | None:
        """How plans are compared by a short recovery; None where that was not asked for.

        A mere default that fails leaves a plan as far from the original as can be: then the best by damage is taken.
        """
        config, budget = self.config, read_budget(self.config.budget)
        if budget is None or config.try_plans < 2:
            return None
        settings = replace(config.settings or DistillConfig(), looks=1)
        short = replace(config, budget=budget.part(_PROBE_SHARE), settings=settings, folder=None)
        task = replace(self, config=short)

        def recover(student: nn.Module, actions: Sequence[Remove | Replace]) -> float:
            try:
                result = task.run(student, actions)
            except REASONS_TO_SKIP as error:
                skip_or_raise(config, error)
                return math.inf
            return result.recovery.divergence_after

        return RecoveryProbe(config.try_plans, recover, str(short.budget))
