"""How far a student is from its teacher on samples that neither training nor test sees."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, batches, first_samples
from shoal.errors import DataError
from shoal.measure import Reading, reading_of
from shoal.outputs import read_outputs
from shoal.preserve import evaluating
from shoal.recover.mixup import pairwise_mixup
from shoal.recover.teacher_cache import TeacherCache
from shoal.recover.trainable import forward_in_format, match_dtype
from shoal.training.engine import Engine

_MAX_CACHED = 2**26  # values of the teacher's outputs that are cached; beyond, it runs again each time


def validation_samples(loader: Iterable[Any], limit: int) -> list[Batch]:
    """The first `limit` samples of a loader.

    Raises:
        DataError: it is empty.
    """
    samples = list(first_samples(batches(loader), limit))
    if not samples:
        raise DataError("the validation data is empty", "Recovery is stopped by it: give at least one mini-batch.")
    return samples


class TeacherKL:
    """Mean damage to the teacher's outputs over validation samples, and over as many mixtures of two of them.

    Of scores of classes it is KL(teacher || student) in nats, of values the squared error relative to their variance.

    The teacher may know the samples by heart, and then they tell little; mixtures are new to both. Tokens cannot be
    mixed.

    Args:
        teacher: in eval mode, on the engine's device.
        samples: mini-batches, at least one.
        engine: moves them.
        reading: how outputs are read, with their scales, no integers among them; by default as the samples tell.
        cache: of the teacher's outputs on disk; None: it runs.
    """

    def __init__(
        self,
        teacher: nn.Module,
        samples: Sequence[Batch],
        engine: Engine,
        reading: Reading | None = None,
        cache: TeacherCache | None = None,
    ) -> None:
        self.teacher, self.engine, self.disk = teacher, engine, cache
        if reading is None:
            moved = [match_dtype(teacher, engine.moved(batch)) for batch in samples]
            reading = reading_of(teacher, moved).differentiable()
        self.reading = reading
        self.batches = [part for batch in samples for part in (batch, pairwise_mixup(batch)) if part is not None]
        self.n = sum(batch.size for batch in samples)
        self._cache: list[dict[str, Tensor] | None] = [None] * len(self.batches)
        self._remaining = _MAX_CACHED

    def evaluate(self, student: nn.Module) -> float:
        """The divergence of a student, which is left as it was; NaN where its outputs are."""
        total, count = 0.0, 0
        with evaluating(self.teacher), evaluating(student):
            for index, batch in enumerate(self.batches):
                moved = self.engine.moved(batch)
                expected = self._teacher_outputs(index, moved)
                with self.engine.autocast():
                    outputs = read_outputs(forward_in_format(student, moved)).tensors
                if not all(_is_finite(outputs[output.name]) for output in self.reading.outputs):
                    return math.nan
                wide = {name: tensor.float() for name, tensor in outputs.items() if tensor.is_floating_point()}
                total += float(self.reading.damage_between(expected, wide, moved).sum())
                count += moved.size
        return total / count

    def keep_outputs(self) -> None:
        """Have the teacher's outputs for all samples in the cache on disk."""
        for batch in self.batches:
            if self.disk is not None:
                self.disk.keep(self.engine.moved(batch))

    def _teacher_outputs(self, index: int, batch: Batch) -> dict[str, Tensor]:
        cached = self._cache[index]
        if cached is not None:
            return cached
        if self.disk is not None:
            tensors: Mapping[str, Tensor] = self.disk.outputs(batch)
        else:
            with self.engine.autocast():
                tensors = read_outputs(forward_in_format(self.teacher, batch)).tensors
        outputs = {output.name: tensors[output.name].float() for output in self.reading.outputs}
        size = sum(tensor.numel() for tensor in outputs.values())
        if size <= self._remaining:
            self._remaining -= size
            self._cache[index] = outputs
        return outputs


def _is_finite(tensor: Tensor) -> bool:
    return not bool((torch.isnan(tensor) | torch.isposinf(tensor)).any())
