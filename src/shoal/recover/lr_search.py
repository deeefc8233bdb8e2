"""A learning rate found by a short search on copies: high ones destroy what lower ones recover.

A replacement without a batch norm tolerates far lower rates than the network it is part of. So every candidate gets a
copy of the student and the same few mini-batches. A few steps favour low rates: a high one first shakes the network up,
and wins in the end. So the highest rate wins whose last losses are still near the lowest; one that destroys is far from
it. Nothing remains of the search. A variant of the range test of Smith 2017, arXiv:1506.01186, which raises the rate
within one run.
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

CANDIDATE_LRS = {
    "sgd": (0.3, 0.1, 0.03, 0.01, 0.003, 0.001),
    "adamw": (0.01, 0.003, 0.001, 0.0003, 0.0001, 0.00003),
}
# The rate where there is no time for a search: merged convolutions without a norm still tolerate it.
SAFE_LR = {"sgd": 0.02, "adamw": 0.0003}
_MIN_STEPS, _MAX_STEPS = 6, 24  # for each rate
_NEAR = 1.6  # times the lowest loss
_SHARE = 0.1  # of a budget, at most, for the whole search


@dataclass(frozen=True)
class LrSearchResult:
    """The learning rate, and the loss each candidate ended with (None: not finite); empty without a search."""

    lr: float
    losses: dict[str, float | None]
    steps: int = 0


def steps_for(budget: TrainingBudget, step_seconds: float, num_candidates: int) -> int:
    """How many steps each candidate gets; 0: there is no room for a search.

    Args:
        budget: of the whole run; a search takes a small share of it.
        step_seconds: what a step takes here.
        num_candidates: how many are tried.
    """
    if budget.steps is not None:
        room = budget.steps * _SHARE / num_candidates
    else:
        room = (budget.seconds or 0.0) * _SHARE / (num_candidates * max(step_seconds, 1e-9))
    return 0 if room < _MIN_STEPS / 3 else min(_MAX_STEPS, max(_MIN_STEPS, int(room)))


def find_lr(
    student: nn.Module,
    distill_step: DistillStep,
    batches: Sequence[Batch],
    optimizer_name: str,
    new_optimizer: Callable[[nn.Module], ClippedOptimizer],
    on_lr: Callable[[int, int], None] = lambda done, total: None,
) -> LrSearchResult:
    """Try every candidate of an optimizer.

    Args:
        student: left as it was; copies are tried.
        distill_step: what a step does.
        batches: the mini-batches, one per step, the same for every candidate.
        optimizer_name: 'sgd' or 'adamw'.
        new_optimizer: makes an optimizer for a copy.
        on_lr: called with (candidates done, candidates).
    """
    losses: dict[str, float | None] = {}
    candidates = CANDIDATE_LRS[optimizer_name]
    for index, lr in enumerate(candidates):
        on_lr(index, len(candidates))
        trial = copied(student)
        losses[f"{lr:g}"] = _final_loss(trial, distill_step, batches, new_optimizer(trial), lr)
    finite = {name: loss for name, loss in losses.items() if loss is not None}
    lr = largest_stable_lr(finite) if finite else SAFE_LR[optimizer_name]
    return LrSearchResult(lr, losses, len(batches))


def largest_stable_lr(losses: Mapping[str, float]) -> float:
    """The highest rate whose loss is near the lowest."""
    lowest = min(losses.values())
    return max(float(lr) for lr, loss in losses.items() if loss <= _NEAR * lowest)


def _final_loss(
    trial: nn.Module, distill_step: DistillStep, batches: Sequence[Batch], optimizer: ClippedOptimizer, lr: float
) -> float | None:
    """The mean loss of the last third; None as soon as it is not finite."""
    losses = []
    for index, batch in enumerate(batches):
        warm_up = min(1.0, 3 * (index + 1) / len(batches))  # as in a run, the rate rises first
        losses.append(float(distill_step.step(trial, optimizer, batch, index, lr * warm_up)))
        if not math.isfinite(losses[-1]):
            return None
    last = losses[-max(1, len(losses) // 3) :]
    return sum(last) / len(last)


def try_step(
    trial: nn.Module, distill_step: DistillStep, batch: Batch, optimizer: ClippedOptimizer
) -> tuple[float, float]:
    """What a step takes here, in seconds, and the loss before it; of a copy that is thrown away."""
    start = time.perf_counter()
    loss = float(distill_step.step(trial, optimizer, batch, 0, 0.0))
    return time.perf_counter() - start, loss
