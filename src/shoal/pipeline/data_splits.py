"""Which samples replacements are fitted on, their damage measured on, and a drop measured on: never the same.

Damage is measured on mixed images too. A network knows its training images by heart, augmented or not: its outputs
there hardly move whatever is done to it, so damage measured on them says little. On a mix of two images it has to
weigh, and its outputs move with every change.

Source: mixing as in Zhang et al. 2018, arXiv:1710.09412; here without labels, the original network is the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from shoal.batches import Batch
from shoal.errors import DataError, count_of
from shoal.recover.mixup import mixup_shape


@dataclass(frozen=True)
class DataSplits:
    """Mini-batches by what they are for; `drop` overlaps the others only where there are no validation samples."""

    fit: list[Batch]
    damage: list[Batch]
    drop: list[Batch]


def split_samples_for_plan(
    calibration: Sequence[Batch], validation: Sequence[Batch] | None, max_damage_samples: int, max_share: float
) -> DataSplits:
    """Divide the samples.

    Damage is measured on at most the first third of the validation samples, and a drop on the rest. Without any, damage
    is measured on a share of the calibration samples.

    Args:
        calibration: mini-batches.
        validation: other mini-batches, or None.
        max_damage_samples: measure damage on at most this many samples.
        max_share: hold back at most this share of the calibration samples, where there are no others.

    Raises:
        DataError: too few samples to hold any back.
    """
    if validation is not None:
        damage, rest = split_samples(validation, min(max_damage_samples, max(1, _samples(validation) // 3)))
        fit, drop = list(calibration), rest or damage
    else:
        if _samples(calibration) < 3:
            count = count_of(_samples(calibration), "calibration sample")
            raise DataError(f"{count}, expected at least 3", "Some are held back.")
        share = max(max_share, 0.25) if len(calibration) == 1 else max_share
        samples = min(max_damage_samples, max(1, round(_samples(calibration) * share)))
        damage, fit = split_samples(calibration, samples)
        drop = list(calibration)
    return DataSplits(fit, damage, drop)


def split_samples(batches: Sequence[Batch], count: int) -> tuple[list[Batch], list[Batch]]:
    """The first `count` samples, and the rest."""
    first: list[Batch] = []
    rest: list[Batch] = []
    remaining = count
    for batch in batches:
        if remaining >= batch.size:
            first.append(batch)
        elif remaining > 0:
            first.append(batch.take(remaining))
            rest.append(batch.rest(remaining))
        else:
            rest.append(batch)
        remaining -= batch.size
    return first, rest


def _samples(batches: Sequence[Batch]) -> int:
    return sum(batch.size for batch in batches)


def with_mixup(batches: Sequence[Batch]) -> list[Batch]:
    """The mini-batches, and after each a mix of every sample with its neighbour; without labels.

    At most the shape of labels remains of the targets, which tells the axis of the classes: see `mixup_shape`. Inputs
    that are no floating-point numbers (tokens) cannot be mixed: such mini-batches come back alone.
    """
    mixed: list[Batch] = []
    for batch in batches:
        shape = mixup_shape(batch.target)
        mixed.append(Batch(batch.args, batch.kwargs, shape))
        if batch.size > 1 and all(tensor.is_floating_point() for tensor in batch.tensors):
            kwargs = {key: _mix(value) for key, value in batch.kwargs.items()}
            mixed.append(Batch(tuple(_mix(value) for value in batch.args), kwargs, shape))
    return mixed


def _mix(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dim() == 0:
        return value
    return 0.5 * value + 0.5 * value.roll(1, 0)
