"""What a choice is made from: a copy of the network, dissected, the samples, what is asked, and how to measure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from shoal.batches import Batch, batches
from shoal.blocks import BlockGraph, analyze
from shoal.errors import DataError, UsageError
from shoal.measure import reading_of
from shoal.outputs import as_names
from shoal.pipeline.candidate_table import DEFAULT_KINDS, LONGEST, STUDENT_BUDGET, check_kinds
from shoal.pipeline.goals import Goal
from shoal.pipeline.greedy import Progress
from shoal.preserve import copied
from shoal.recover import read_budget
from shoal.scanning import DamageFunction, OutputDamage


@dataclass(frozen=True)
class MeasureConfig:
    """How to measure.

    `images` caps the calibration samples, `validation_images` those of validation, `judge_images` those that damage is
    measured on (validation samples where there are any, else a `judged_share` of calibration's). `stand_ins` are the
    kinds to try, `longest` the steps of the longest span. The students among them ('block', 'narrow', 'narrow1/4') are
    trained for `student_budget` in all, a time or a number of mini-batches.
    """

    images: int = 512
    judged_share: float = 0.15
    judge_images: int = 128
    validation_images: int = 2048
    stand_ins: tuple[str, ...] = DEFAULT_KINDS
    longest: int = LONGEST
    student_budget: str | int = STUDENT_BUDGET
    channels_last: bool = False
    latency_seconds: float = 1.0

    def __post_init__(self) -> None:
        for name in ("images", "judge_images", "longest", "validation_images", "latency_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}, expected more than 0", "Leave it out.")
        check_kinds(self.stand_ins)
        if read_budget(self.student_budget) is None:
            raise UsageError("students without a budget learn nothing", "Ask for no students in `stand_ins`.")


@dataclass(frozen=True)
class CompressContext:
    """Everything a choice needs.

    Args:
        anatomy: a copy of the original, dissected, in eval mode.
        model: the original, to copy.
        goal: what is asked.
        chosen_on: calibration mini-batches.
        judged_on: validation mini-batches, or None.
        settings: how to measure.
        damage: what a change does to the output, for each sample, and how outputs are read.
        progress: called with (stage, done, total).
    """

    anatomy: BlockGraph
    model: nn.Module
    goal: Goal
    chosen_on: list[Batch]
    judged_on: list[Batch] | None
    settings: MeasureConfig
    damage: OutputDamage
    progress: Progress


def materialize(
    calibration: Iterable[Any], validation: Iterable[Any] | None, settings: MeasureConfig, device: Any
) -> tuple[list[Batch], list[Batch] | None]:
    """The mini-batches to choose on and to judge on, kept, so that every candidate sees the very same ones.

    Raises:
        DataError: there are none.
    """
    chosen_on = _gathered(calibration, settings.images, device, "calibration")
    if validation is None:
        return chosen_on, None
    return chosen_on, _gathered(validation, settings.validation_images, device, "validation")


def build_context(
    model: nn.Module,
    chosen_on: list[Batch],
    judged_on: list[Batch] | None,
    goal: Goal,
    settings: MeasureConfig,
    damage: DamageFunction | None,
    progress: Progress,
    output: str | Sequence[str] | None = None,
) -> CompressContext:
    """Dissect a copy of the network, and put everything together.

    Raises:
        SurgeryError: a network that cannot be copied.
        NonFiniteError, ModelRaisedError: data, weights or model at fault.
    """
    progress("tracing", 0, 1)
    anatomy = analyze(copied(model).eval(), chosen_on[0].take(2))
    reading = reading_of(anatomy.model, chosen_on, as_names(output), judged_on or [])
    reading.check_labels([*chosen_on, *(judged_on or [])])
    return CompressContext(
        anatomy, model, goal, chosen_on, judged_on, settings, OutputDamage(reading, damage), progress
    )


def _gathered(loader: Iterable[Any], limit: int, device: Any, name: str) -> list[Batch]:
    found, count = [], 0
    for batch in batches(loader, device):
        found.append(batch.take(limit - count) if count + batch.size > limit else batch)
        count += found[-1].size
        if count >= limit:
            break
    if not found:
        raise DataError(f"the {name} data is empty", "Give at least one mini-batch.")
    return found
