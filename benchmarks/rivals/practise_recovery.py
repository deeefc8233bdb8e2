"""PRACTISE's way of recovering: the whole cut network tuned on the squared error of the features before the pooling.

Source: Wang and Wu 2023, arXiv:2202.07861; own implementation. Batch norms in training mode, the classifier as it was
(no gradient reaches it), SGD with momentum 0.9, a tenth of the rate after each 40 % of the budget, mini-batches of 64.
The rate there is 0.02; here the best of some, see `rivals.tuning`. What the last step leaves comes out, as there; where
it diverges, the weights before the first step.
"""

import copy
import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rivals.ground import Ground
from rivals.practise import BATCH, halves, last_block, rate_at
from shoal.batches import Batch, call
from shoal.preserve import evaluating
from shoal.recover import TrainingBudget
from shoal.recover.train_step import capture_outputs, set_train_mode_
from shoal.training.loaders import LoaderFactory, MixedLoader, ResumableLoader

RATES = (0.02, 0.06, 0.2)
_MIN_NORM_BATCH = 2


@dataclass(frozen=True)
class FeatureTuning:
    """How the features are learned.

    Args:
        training: mini-batches by epoch.
        budget: as for every other method.
        unlabelled: extra data for half of the steps.
        rate: the learning rate before it falls.
        seed: of the streams.
    """

    training: LoaderFactory
    budget: TrainingBudget
    unlabelled: LoaderFactory | None = None
    rate: float = RATES[0]
    seed: int = 0


def tuned(cut: nn.Module, ground: Ground, tuning: FeatureTuning) -> tuple[nn.Module, dict[str, Any]]:
    """A tuned copy of `cut`, and what was done."""
    started, budget = time.perf_counter(), tuning.budget
    student = copy.deepcopy(cut).requires_grad_(requires_grad=True)
    extra = ResumableLoader(tuning.unlabelled, tuning.seed + 1, "unlabelled") if tuning.unlabelled is not None else None
    loader = MixedLoader(ResumableLoader(tuning.training, tuning.seed), extra, 0.5)
    optimizer = torch.optim.SGD(student.parameters(), lr=tuning.rate, momentum=0.9)
    step = samples = taken = 0
    losses: list[float] = []
    portions: list[Batch] = []
    # A budget of steps is one of samples: what is cut into several mini-batches counts once, as it does elsewhere.
    while (spent := budget.spent(taken - bool(portions), time.perf_counter() - started)) < 1:
        if not portions:
            portions = list(halves([loader.next_batch(taken)], BATCH))
            taken += 1
        batch = portions.pop(0)
        losses.append(_step(student, ground, batch, optimizer, rate_at(spent, tuning.rate)))
        if not math.isfinite(losses[-1]):
            seconds = time.perf_counter() - started
            return cut, {"stopped": "diverged", "steps": step, "rate": tuning.rate, "seconds": seconds}
        step, samples = step + 1, samples + batch.size
        ground.progress("tuning on features", round(100 * min(1.0, spent)), 100)
    part = max(1, len(losses) // 10)
    done = {
        "stopped": "budget",
        "budget": str(budget),
        "rate": tuning.rate,
        "steps": step,
        "samples": samples,
        "seconds": time.perf_counter() - started,
        "loss_first": sum(losses[:part]) / part,
        "loss_last": sum(losses[-part:]) / part,
    }
    return student.eval(), done


def _step(student: nn.Module, ground: Ground, batch: Batch, optimizer: torch.optim.Optimizer, rate: float) -> float:
    """One step on the squared error of the features; the loss before it."""
    last = last_block(ground)
    with evaluating(ground.model), capture_outputs(ground.model, [last]) as expected:
        call(ground.model, batch)
    set_train_mode_(student, batch.size, _MIN_NORM_BATCH)
    with capture_outputs(student, [last]) as features:
        call(student, batch)
    loss = (features[last] - expected[last]).square().mean()
    if bool(loss.isfinite()):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return float(loss.detach())
