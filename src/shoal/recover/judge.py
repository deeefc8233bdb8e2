"""How far a student is from its teacher on samples that neither training nor test sees."""

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from shoal.batches import Batch, batches, logits_of
from shoal.engine import Engine
from shoal.errors import DataError
from shoal.measure import kl_per_sample, log_probabilities
from shoal.preserve import evaluating
from shoal.recover.blending import neighbours_blended
from shoal.recover.form import ask

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


class Judge:
    """Mean KL(teacher || student) in nats over validation samples, and over as many blends of two of them.

    The teacher may know the samples by heart, and then they tell little; about blends both have to think. Tokens cannot
    be blended.

    Args:
        teacher: in eval mode, on the engine's device.
        samples: mini-batches, at least one.
        engine: moves them.
    """

    def __init__(self, teacher: nn.Module, samples: Sequence[Batch], engine: Engine) -> None:
        self.teacher, self.engine = teacher, engine
        self.asked = [part for one in samples for part in (one, neighbours_blended(one)) if part is not None]
        self.n = sum(one.size for one in samples)
        self._said: list[Tensor | None] = [None] * len(self.asked)
        self._free = _KEPT

    def of(self, student: nn.Module) -> float:
        """The divergence of a student, which is left as it was; NaN where its answers are."""
        total, count = 0.0, 0
        with evaluating(self.teacher), evaluating(student):
            for number, given in enumerate(self.asked):
                batch = self.engine.moved(given)
                said = self._said_to(number, batch)
                with self.engine.autocast():
                    own = logits_of(ask(student, batch))
                total += float(kl_per_sample(said, own.float(), batch.counted(said.shape[:-1])).sum())
                count += batch.size
        return total / count

    def _said_to(self, number: int, batch: Batch) -> Tensor:
        kept = self._said[number]
        if kept is not None:
            return kept
        with self.engine.autocast():
            said = log_probabilities(logits_of(ask(self.teacher, batch)), batch.target)
        if said.numel() <= self._free:
            self._free -= said.numel()
            self._said[number] = said
        return said
