"""A learning rate found by a short test on copies: high ones destroy what lower ones recover.

A stand-in without a batch norm bears far less than the network it stands in. So every rate of a row gets a copy of the
student and the same few mini-batches. A few steps favour low rates: a high one first shakes the network up, and wins in
the end. So the highest rate wins whose last losses are still near the least; one that destroys is far from it. Nothing
remains of the test. A variant of the range test of Smith 2017, arXiv:1506.01186, which raises the rate within one run.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from shoal.batches import Batch
from shoal.preserve import copied
from shoal.recover.train_step import DistillStep
from shoal.training.budget import TrainingBudget
from shoal.training.optim import ClippedOptimizer

RATES = {
    "sgd": (0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
    "adamw": (0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
}
# The rate where there is no time for a test: what merged convolutions without a norm still bore.
SAFE_LR = {"sgd": 0.02, "adamw": 0.0003}
_LEAST, _MOST = 6, 24  # steps for each rate
_NEAR = 1.6  # times the least loss
_SHARE = 0.1  # of a budget, at most, for the whole test


@dataclass(frozen=True)
class LrSearchResult:
    """The rate, and the loss each rate of the test ended with (None: not finite); empty without a test."""

    rate: float
    tried: dict[str, float | None]
    steps: int = 0


def steps_for(budget: TrainingBudget, step_seconds: float, rates: int) -> int:
    """How many steps each rate gets; 0: there is no room for a test.

    Args:
        budget: of the whole run; a test takes a small share of it.
        step_seconds: what a step takes here.
        rates: how many are tried.
    """
    if budget.steps is not None:
        room = budget.steps * _SHARE / rates
    else:
        room = (budget.seconds or 0.0) * _SHARE / (rates * max(step_seconds, 1e-9))
    return 0 if room < _LEAST / 3 else min(_MOST, max(_LEAST, int(room)))


def find_lr(
    student: nn.Module,
    lesson: DistillStep,
    given: Sequence[Batch],
    kind: str,
    stepping: Callable[[nn.Module], ClippedOptimizer],
    tick: Callable[[int, int], None] = lambda done, of: None,
) -> LrSearchResult:
    """Try every rate of the row.

    Args:
        student: left as it was; copies are tried.
        lesson: what a step does.
        given: the mini-batches, one a step, the same for every rate.
        kind: of optimizer.
        stepping: makes an optimizer for a copy.
        tick: called with (rates done, rates).
    """
    tried: dict[str, float | None] = {}
    for number, rate in enumerate(RATES[kind]):
        tick(number, len(RATES[kind]))
        twin = copied(student)
        tried[f"{rate:g}"] = _tried(twin, lesson, given, stepping(twin), rate)
    finite = {name: loss for name, loss in tried.items() if loss is not None}
    best = largest_stable_lr(finite) if finite else SAFE_LR[kind]
    return LrSearchResult(best, tried, len(given))


def largest_stable_lr(losses: Mapping[str, float]) -> float:
    """The highest rate whose loss is near the least."""
    least = min(losses.values())
    return max(float(rate) for rate, loss in losses.items() if loss <= _NEAR * least)


def _tried(
    twin: nn.Module, lesson: DistillStep, given: Sequence[Batch], stepping: ClippedOptimizer, rate: float
) -> float | None:
    """The mean loss of the last third; None as soon as one is not finite."""
    losses = []
    for step, batch in enumerate(given):
        risen = min(1.0, 3 * (step + 1) / len(given))  # as in a run, the rate rises first
        losses.append(float(lesson.teach(twin, stepping, batch, step, rate * risen)))
        if not math.isfinite(losses[-1]):
            return None
    last = losses[-max(1, len(losses) // 3) :]
    return sum(last) / len(last)


def try_step(twin: nn.Module, lesson: DistillStep, batch: Batch, stepping: ClippedOptimizer) -> tuple[float, float]:
    """What a step takes here, in seconds, and the loss before it; of a copy that nobody needs."""
    start = time.perf_counter()
    loss = float(lesson.teach(twin, stepping, batch, 0, 0.0))
    return time.perf_counter() - start, loss
