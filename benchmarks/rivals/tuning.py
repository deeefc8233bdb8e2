"""PRACTISE's way of recovering: the whole cut network tuned on the squared error of the features before the pooling.

Source: Wang and Wu 2023, arXiv:2202.07861; own implementation. Batch norms in training mode, the classifier as it was
(no gradient reaches it), SGD at 0.02 with momentum 0.9, a tenth after each 40 % of the budget, mini-batches of 64. What
the last step leaves comes out, as there; where it diverges, the weights it began with, which is said.
"""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rivals.practise import BATCH, halves, rate_at
from shoal.batches import Batch, call
from shoal.preserve import evaluating
from shoal.recover import TrainingBudget
from shoal.recover.train_step import capture_outputs, set_train_mode_
from shoal.training.loaders import LoaderFactory, MixedLoader, ResumableLoader

_FEWEST = 2


def tuned(
    cut: nn.Module,
    original: nn.Module,
    last: str,
    training: LoaderFactory,
    *,
    budget: TrainingBudget,
    unlabelled: LoaderFactory | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None],
) -> tuple[nn.Module, dict[str, Any]]:
    """A tuned copy of `cut`, and what was done.

    Args:
        cut: a network without some blocks.
        original: the teacher.
        last: the path of the block whose features are compared.
        training: mini-batches by epoch.
        budget: as for every other method.
        unlabelled: extra data for half of the steps.
        seed: of the streams.
        progress: called with (stage, done, total).
    """
    started = time.perf_counter()
    student = copy.deepcopy(cut).requires_grad_(requires_grad=True)
    extra = ResumableLoader(unlabelled, seed + 1, "unlabelled") if unlabelled is not None else None
    material = MixedLoader(ResumableLoader(training, seed), extra, 0.5)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9)
    step = samples = taken = 0
    losses: list[float] = []
    portions: list[Batch] = []
    # A budget of steps is one of samples: what is cut into several mini-batches counts once, as it does elsewhere.
    while (spent := budget.spent(taken - bool(portions), time.perf_counter() - started)) < 1:
        if not portions:
            portions = list(halves([material.take(taken)], BATCH))
            taken += 1
        batch = portions.pop(0)
        with evaluating(original), capture_outputs(original, [last]) as wanted:
            call(original, batch)
        set_train_mode_(student, batch.size, _FEWEST)
        with capture_outputs(student, [last]) as own:
            call(student, batch)
        loss = (own[last] - wanted[last]).square().mean()
        losses.append(float(loss.detach()))
        if losses[-1] != losses[-1] or losses[-1] == float("inf"):
            return cut, {"stopped": "diverged", "steps": step, "seconds": time.perf_counter() - started}
        optimizer.param_groups[0]["lr"] = rate_at(spent)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step, samples = step + 1, samples + batch.size
        progress("tuning on features", round(100 * min(1.0, spent)), 100)
    part = max(1, len(losses) // 10)
    done = {
        "stopped": "budget",
        "budget": str(budget),
        "steps": step,
        "samples": samples,
        "seconds": time.perf_counter() - started,
        "loss_first": sum(losses[:part]) / part,
        "loss_last": sum(losses[-part:]) / part,
    }
    return student.eval(), done
