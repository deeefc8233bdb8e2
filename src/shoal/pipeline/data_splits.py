"""Which samples stand-ins are fitted on, their damage judged on, and a drop judged on: never the same."""

from collections.abc import Sequence
from dataclasses import dataclass

from shoal.batches import Batch
from shoal.errors import DataError


@dataclass(frozen=True)
class DataSplits:
    """Mini-batches by what they are for; `drop_on` overlaps the others only where there are no validation samples."""

    fit_on: list[Batch]
    judge_on: list[Batch]
    drop_on: list[Batch]


def split_samples_for_plan(
    calibration: Sequence[Batch], validation: Sequence[Batch] | None, judge_images: int, judged_share: float
) -> DataSplits:
    """Divide the samples.

    Damage is judged on the first third, at most, of the validation samples, and a drop on the others. Without any,
    damage is judged on a share of the calibration samples.

    Args:
        calibration: mini-batches.
        validation: other mini-batches, or None.
        judge_images: as many samples as damage is judged on, at most.
        judged_share: of the calibration samples, at most, where there are no others.

    Raises:
        DataError: too few samples to hold any back.
    """
    if validation is not None:
        judge_on, rest = split_samples(validation, min(judge_images, max(1, _samples(validation) // 3)))
        fit_on, drop_on = list(calibration), rest or judge_on
    else:
        if _samples(calibration) < 3:
            raise DataError(f"{_samples(calibration)} calibration samples, expected at least 3", "Some are held back.")
        share = max(judged_share, 0.25) if len(calibration) == 1 else judged_share
        judge_on, fit_on = split_samples(calibration, min(judge_images, max(1, round(_samples(calibration) * share))))
        drop_on = list(calibration)
    # The last mini-batch of a loader may hold a single sample, of which none can be held out.
    return DataSplits([batch for batch in fit_on if batch.size > 1] or fit_on, judge_on, drop_on)


def split_samples(batches: Sequence[Batch], most: int) -> tuple[list[Batch], list[Batch]]:
    """The first samples, at most so many, and the others."""
    first: list[Batch] = []
    rest: list[Batch] = []
    left = most
    for batch in batches:
        if left >= batch.size:
            first.append(batch)
        elif left > 0:
            first.append(batch.take(left))
            rest.append(batch.rest(left))
        else:
            rest.append(batch)
        left -= batch.size
    return first, rest


def _samples(batches: Sequence[Batch]) -> int:
    return sum(batch.size for batch in batches)
