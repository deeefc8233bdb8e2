"""Recovery of a cut network: how it is asked for, what is refused, and where a mere default gives way."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from shoal.batches import Batch, batches, device_of
from shoal.errors import (
    DataError,
    ModelRaisedError,
    NonFiniteError,
    OutOfMemoryError,
    ShoalError,
    SurgeryError,
    UsageError,
)
from shoal.measure import Reading
from shoal.pipeline.greedy import Progress
from shoal.pipeline.recovery_probe import RecoveryProbe
from shoal.plan import Fold, Remove, Replace
from shoal.recover import DistillConfig, DistillResult, TrainingBudget, distill, read_budget
from shoal.recover.checkpoint import ensure_dir
from shoal.recover.preflight import check_disjoint, check_in_memory, check_trainable, check_unlabelled
from shoal.training.loaders import LoaderFactory, loader_factory

_TRIED = 0.1  # of the budget, for each plan that contends


@dataclass(frozen=True, eq=False)
class Recover:
    """How to win back what a cut has lost.

    Args:
        budget: `10m`, `90s`, or a number of steps.
        settings: of the distillation.
        training: what to learn from: mini-batches, or a function that gives those of an epoch, from 1; by default the
            calibration data as it was given.
        unlabelled: extra mini-batches of the same form, in the same way.
        folder: keeps the cut network, checkpoints and metrics: the same call goes on from there.
        try_plans: where a plan is made for a budget, so many of the best contend, and each recovers for a tenth of
            `budget` before one is chosen, on top of the budget; 0 takes the one of least damage.
        asked: somebody asked for it. False for a mere default: where it cannot be done the cut stays as it is, and
            the notes say why.
    """

    budget: str | int | TrainingBudget = "5m"
    settings: DistillConfig | None = None
    training: Iterable[Any] | LoaderFactory | None = None
    unlabelled: Iterable[Any] | LoaderFactory | None = None
    folder: str | Path | None = None
    try_plans: int = 0
    asked: bool = True

    def __post_init__(self) -> None:
        if self.try_plans < 0:
            raise UsageError(f"try_plans is {self.try_plans}, expected 0 or more", "Leave it out.")

    @property
    def path(self) -> Path | None:
        """The folder, made if it is missing.

        Raises:
            FolderError: it cannot be made.
        """
        return ensure_dir(self.folder) if self.folder is not None else None


def normalize_recovery(given: Recover | TrainingBudget | str | int | None) -> Recover | None:
    """What was asked, its data such that it can be read again and again; None for no recovery.

    Raises:
        UsageError: a budget that is none.
    """
    if not isinstance(given, Recover):
        given = Recover(given) if given is not None else None
    if given is None or read_budget(given.budget) is None:
        return None
    training, unlabelled = (
        loader_factory(one) if one is not None else None for one in (given.training, given.unlabelled)
    )
    return replace(given, training=training, unlabelled=unlabelled)


# Why a recovery that nobody asked for may be left out: it does not go with what was given, or network or machine do not
# bear it. A full disk, damaged files and faults of the program itself are always raised.
REASONS_TO_SKIP = (UsageError, DataError, NonFiniteError, ModelRaisedError, SurgeryError, OutOfMemoryError)


def skip_or_raise(recover: Recover, error: ShoalError) -> str:
    """What is noted where a recovery by default is left out; one that was asked for raises.

    Args:
        recover: what failed.
        error: one of `REASONS_TO_SKIP`.
    """
    if recover.asked:
        raise error
    lines = error.message.strip().splitlines()
    return f"not recovered: {lines[0] if lines else type(error).__name__}"


def check_recover(
    recover: Recover, model: nn.Module, calibration: object, validation: object, example: Batch, *, exact: bool
) -> None:
    """Refuse what could only fail after the choice was made, which may have taken long.

    Args:
        recover: as `as_recover` returns it.
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
    if recover.unlabelled is not None:
        first = next(batches(loader_factory(recover.unlabelled)(1), example.tensors[0].device), None)
        if first is None:
            raise DataError("the unlabelled data is empty", "Leave it out.")
        check_unlabelled(first, example)


def run_recovery(
    cut: nn.Module,
    original: nn.Module,
    actions: Sequence[Remove | Replace | Fold],
    recover: Recover,
    calibration: Iterable[Any],
    validation: Iterable[Any],
    known: Sequence[Batch],
    progress: Progress,
    reading: Reading | None = None,
) -> DistillResult:
    """Distil a copy of a cut network from the original; it comes back in the form of the plan.

    Args:
        cut: left as it was.
        original: the teacher; likewise.
        actions: of the plan.
        recover: how.
        calibration: to learn from where `recover` names nothing else.
        validation: to choose on.
        known: calibration mini-batches on the device, that batch norms of stand-ins are set from.
        progress: called with (stage, done, total).
        reading: how outputs are read; None: as the data tells.
    """
    return distill(
        cut,
        original,
        recover.training if recover.training is not None else calibration,
        validation=validation,
        budget=recover.budget,
        unlabelled=recover.unlabelled,
        settings=recover.settings,
        folder=recover.path,
        device=str(device_of(cut)),
        replaced=[one for one in actions if isinstance(one, Replace)],
        known=known,
        reading=reading,
        progress=progress,
    )


def make_probe(
    recover: Recover | None,
    original: nn.Module,
    calibration: Iterable[Any],
    validation: Iterable[Any],
    known: Sequence[Batch],
    progress: Progress,
    reading: Reading | None = None,
) -> RecoveryProbe | None:
    """How plans are told apart by a short recovery; None where it was not asked for. Arguments as in `recovered`.

    A mere default that fails leaves a plan as far from the original as can be: then the best by damage is taken.
    """
    budget = read_budget(recover.budget) if recover is not None else None
    if recover is None or budget is None or recover.try_plans < 2:
        return None
    settings = replace(recover.settings or DistillConfig(), looks=1)
    short = replace(recover, budget=budget.part(_TRIED), settings=settings, folder=None)

    def after(cut: nn.Module, actions: Sequence[Remove | Replace]) -> float:
        try:
            found = run_recovery(cut, original, actions, short, calibration, validation, known, progress, reading)
        except REASONS_TO_SKIP as error:
            skip_or_raise(recover, error)
            return math.inf
        return found.recovery.divergence_after

    return RecoveryProbe(recover.try_plans, after, str(short.budget))
