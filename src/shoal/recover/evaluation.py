"""How far a student is from its teacher on samples that neither training nor test sees."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, batches
from shoal.errors import DataError
from shoal.measure import Reading, reading_of
from shoal.outputs import read_outputs
from shoal.preserve import evaluating
from shoal.recover.mixup import pairwise_mixup
from shoal.recover.trainable import forward_in_format, match_dtype
from shoal.training.engine import Engine

_KEPT = 2**26  # values of the teacher's answers that are kept; beyond, it is asked again each time


def validation_samples(loader: Iterable[Any], limit: int) -> list[Batch]:
    """The first `limit` samples of a loader, kept.

    Raises:
        DataError: it is empty.
    """
    found: list[Batch] = []
    left = limit
    for batch in batches(loader):
        found.append(batch.take(left))
        left -= found[-1].size
        if left <= 0:
            break
    if not found:
        raise DataError("the validation data is empty", "Recovery is stopped by it: give at least one mini-batch.")
    return found


class TeacherKL:
    """Mean damage to the teacher's outputs over validation samples, and over as many blends of two of them.

    Of scores of classes it is KL(teacher || student) in nats, of values the squared error relative to their variance.

    The teacher may know the samples by heart, and then they tell little; about blends both have to think. Tokens cannot
    be blended.

    Args:
        teacher: in eval mode, on the engine's device.
        samples: mini-batches, at least one.
        engine: moves them.
        reading: how outputs are read, with their scales; by default as the samples tell.
    """

    def __init__(
        self, teacher: nn.Module, samples: Sequence[Batch], engine: Engine, reading: Reading | None = None
    ) -> None:
        self.teacher, self.engine = teacher, engine
        self.reading = reading or reading_of(teacher, [match_dtype(teacher, engine.moved(one)) for one in samples])
        self.asked = [part for one in samples for part in (one, pairwise_mixup(one)) if part is not None]
        self.n = sum(one.size for one in samples)
        self._said: list[dict[str, Tensor] | None] = [None] * len(self.asked)
        self._free = _KEPT

    def of(self, student: nn.Module) -> float:
        """The divergence of a student, which is left as it was; NaN where its answers are."""
        total, count = 0.0, 0
        with evaluating(self.teacher), evaluating(student):
            for number, given in enumerate(self.asked):
                batch = self.engine.moved(given)
                said = self._said_to(number, batch)
                with self.engine.autocast():
                    own = read_outputs(forward_in_format(student, batch)).tensors
                if not all(_finite(own[one.name]) for one in self.reading.outputs):
                    return math.nan
                wide = {name: tensor.float() for name, tensor in own.items() if tensor.is_floating_point()}
                total += float(self.reading.damage_between(said, wide, batch).sum())
                count += batch.size
        return total / count

    def _said_to(self, number: int, batch: Batch) -> dict[str, Tensor]:
        kept = self._said[number]
        if kept is not None:
            return kept
        with self.engine.autocast():
            every = read_outputs(forward_in_format(self.teacher, batch)).tensors
        said = {one.name: every[one.name].float() for one in self.reading.outputs}
        size = sum(tensor.numel() for tensor in said.values())
        if size <= self._free:
            self._free -= size
            self._said[number] = said
        return said


def _finite(tensor: Tensor) -> bool:
    return not bool((torch.isnan(tensor) | torch.isposinf(tensor)).any())
