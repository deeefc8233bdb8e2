"""Paired sums over a stream of mini-batches: how a changed network answers beside the whole one.

Memory does not grow with the data; intervals come from the sums alone.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import scipy
from torch import Tensor

from shoal.batches import IGNORED, Batch
from shoal.measure.classes import checked_labels, kl_per_sample, log_probabilities, mean_over
from shoal.measure.intervals import paired_drop
from shoal.record import Interval


@dataclass(frozen=True)
class BatchPredictions:
    """What one network says about one mini-batch; all per sample but `log_probs`.

    `loss` is the cross-entropy in nats (the mean over labelled positions), `hit` whether the answer is right, each None
    without fitting labels; `answer` the most likely class (per position where there are several), `counted` which of
    them are no padding, None where all count.
    """

    log_probs: Tensor
    answer: Tensor
    loss: Tensor | None
    hit: Tensor | None
    counted: Tensor | None = None


def read_predictions(
    logits: Tensor, target: Tensor | None, batch: Batch | None = None, axis: int | None = None
) -> BatchPredictions:
    """Read logits of a mini-batch; labels that fit are used.

    Args:
        logits: as the network returned them.
        target: the labels.
        batch: tells which positions are padding and do not count.
        axis: of the classes, where it is known.

    Raises:
        DataError: labels out of range, logits of no classes.
    """
    log_probs = log_probabilities(logits, target, axis)
    labels = checked_labels(target, log_probs)
    answer = log_probs.argmax(dim=-1)
    counted = batch.counted(answer.shape) if batch is not None else None
    if labels is None:
        return BatchPredictions(log_probs, answer, None, None, counted)
    labels = labels.to(log_probs.device)
    picked = log_probs.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1).double()
    labelled = labels != IGNORED if counted is None else (labels != IGNORED) & counted
    weights = labelled.reshape(len(labels), -1).double()
    loss = -(picked.reshape(len(labels), -1) * weights).sum(1) / weights.sum(1).clamp(min=1)
    return BatchPredictions(log_probs, answer, loss, (answer == labels) if labels.dim() == 1 else None, counted)


@dataclass
class Accumulator:
    """Sums over samples of one changed network against the whole one.

    `kl` is the damage, the KL divergence of scores of classes; `increase` is the increase of the loss, or the damage
    where there are no labels.
    """

    n: int = 0
    labelled: int = 0
    single: int = 0
    right: int = 0
    lost: int = 0
    won: int = 0
    changed: float = 0.0
    loss: float = 0.0
    kl: float = 0.0
    increase: float = 0.0
    increase_squared: float = 0.0

    def add_damage(self, damage: Tensor) -> None:
        """Take in the damage of each sample of one mini-batch, where there are no answers to count."""
        self.n += len(damage)
        self.kl += float(damage.sum())
        self.increase += float(damage.sum())
        self.increase_squared += float((damage * damage).sum())

    def add(
        self,
        whole: BatchPredictions,
        logits: Tensor,
        target: Tensor | None,
        batch: Batch | None = None,
        axis: int | None = None,
    ) -> None:
        """Take in one mini-batch of scores of classes."""
        after = read_predictions(logits, target, batch, axis)
        size = len(after.answer)
        kl = kl_per_sample(whole.log_probs, logits if axis is None else logits.movedim(axis, -1), whole.counted)
        self.n += size
        self.changed += float(mean_over((whole.answer != after.answer).double(), whole.counted).sum())
        self.kl += float(kl.sum())
        increase = kl
        if whole.loss is not None and after.loss is not None:
            increase = after.loss - whole.loss
            self.labelled += size
            self.loss += float(after.loss.sum())
        if whole.hit is not None and after.hit is not None:
            self.single += size
            self.right += int(after.hit.sum())
            self.lost += int((whole.hit & ~after.hit).sum())
            self.won += int((~whole.hit & after.hit).sum())
        self.increase += float(increase.sum())
        self.increase_squared += float((increase * increase).sum())

    def merge(self, later: "Accumulator") -> None:
        """Take in the sums of later mini-batches: bit for bit what adding these here gives, one by one."""
        for name, value in asdict(later).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def top1(self) -> float | None:
        """Share of right answers, None without one label a sample."""
        return self.right / self.n if self.single == self.n and self.n else None

    @property
    def top1_drop(self) -> float | None:
        """Drop of top-1 as a fraction, None without labels."""
        return (self.lost - self.won) / self.n if self.top1 is not None else None

    def drop_interval(self, confidence: float = 0.95) -> Interval | None:
        """Tango's interval of the drop of top-1."""
        return paired_drop(self.n, self.lost, self.won, confidence) if self.top1 is not None else None

    def increase_interval(self, confidence: float = 0.95) -> Interval:
        """Student's t interval of the mean increase of the loss; unbounded for a single sample."""
        if self.n < 2:
            return (-math.inf, math.inf)
        mean = self.increase / self.n
        variance = max(0.0, self.increase_squared - self.n * mean * mean) / (self.n - 1)
        half = float(scipy.stats.t.ppf((1 + confidence) / 2, self.n - 1)) * math.sqrt(variance / self.n)
        return (mean - half, mean + half)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a journal."""
        return asdict(self)

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> "Accumulator":
        """The tally that `to_dict` wrote."""
        return Accumulator(**plain)
