import copy

import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.recover import DistillConfig, TrainingBudget
from shoal.recover.lr_search import CANDIDATE_LRS, find_lr, largest_stable_lr, steps_for, try_step
from shoal.recover.train_step import DistillStep
from shoal.training.optim import ClippedOptimizer
from teaching import CLASSES, engine, images, same, student, teacher

GIVEN = [Batch((images(16, seed),)) for seed in range(8)]


def stepping(model):
    return ClippedOptimizer(model, "sgd", 0.0, 0.0)  # no clipping: nothing holds a high rate back


def test_nothing_remains_of_the_test():
    own = student()
    before, draws = copy.deepcopy(own), torch.get_rng_state()
    lesson = DistillStep(teacher(), [], DistillConfig(), engine(), features=0.0, reading=CLASSES)
    with torch.random.fork_rng():
        found = find_lr(own, lesson, GIVEN, "sgd", stepping)
        try_step(copy.deepcopy(own), lesson, GIVEN[0], stepping(own))
    assert same(before, own)
    assert all(parameter.grad is None for parameter in own.parameters())
    assert torch.equal(draws, torch.get_rng_state())
    assert found.lr in CANDIDATE_LRS["sgd"]
    assert list(found.losses) == [f"{rate:g}" for rate in CANDIDATE_LRS["sgd"]]


def test_a_rate_that_destroys_is_not_taken():
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 10))
    wild = copy.deepcopy(wide)
    with torch.no_grad():
        wide[1].weight.mul_(30)
        wild[1].weight.mul_(30).add_(0.3 * torch.randn(64, 64))
    found = find_lr(
        wild, DistillStep(wide, [], DistillConfig(), engine(), features=0.0, reading=CLASSES), GIVEN, "sgd", stepping
    )
    worst = found.losses["0.3"]
    assert worst is None or worst > 2 * min(loss for loss in found.losses.values() if loss is not None)
    assert found.lr < 0.3


def test_the_highest_rate_near_the_least_loss():
    assert largest_stable_lr({"1": 4.4, "0.1": 0.174, "0.03": 0.159, "0.001": 0.2}) == 0.1
    assert largest_stable_lr({"0.3": 1.322, "0.1": 0.859, "0.03": 0.743, "0.01": 0.75}) == 0.1


@pytest.mark.parametrize(
    ("budget", "seconds", "steps"),
    [
        (TrainingBudget(steps=10), 1.0, 0),
        (TrainingBudget(steps=2000), 1.0, 24),
        (TrainingBudget(seconds=300.0), 0.5, 8),
        (TrainingBudget(seconds=5.0), 0.5, 0),
    ],
)
def test_the_test_takes_a_small_share_of_the_budget(budget, seconds, steps):
    assert steps_for(budget, seconds, 7) == steps
