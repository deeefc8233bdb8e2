import copy

import pytest
import torch
from lessons import CLASSES, engine, images, same, student, teacher

from shoal.batches import Batch
from shoal.errors import DataError
from shoal.recover import DistillConfig
from shoal.recover.optim import ClippedOptimizer
from shoal.recover.train_step import DistillStep

PATHS = ["blocks.0", "blocks.3"]


def lesson(features=1.0, **more):
    return DistillStep(
        teacher(), more.pop("paths", PATHS), DistillConfig(**more), engine(), features=features, reading=CLASSES
    )


def test_lessons_bring_the_student_nearer_and_leave_the_teacher_alone():
    one, own = lesson(), student()
    before = copy.deepcopy(one.teacher)
    stepping = ClippedOptimizer(own, "sgd", 0.0, 0.05)
    losses = [float(one.teach(own, stepping, Batch((images(32),)), 0, 0.1)) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    assert same(before, one.teacher)


def test_the_same_step_draws_the_same_whatever_came_before():
    def gradient():
        own = student()
        loss = lesson().gradients(own, Batch((images(16),)), 5)
        return loss, own.head.weight.grad

    first = gradient()
    torch.rand(13)
    assert all(torch.equal(one, other) for one, other in zip(first, gradient(), strict=True))


def test_features_and_labels_are_parts_of_the_loss():
    given = Batch((images(16),), {}, torch.zeros(16, dtype=torch.long))
    alone = float(lesson(features=0.0).gradients(student(), given, 0))
    once, thrice = (float(lesson(features=weight).gradients(student(), given, 0)) for weight in (1.0, 3.0))
    assert once > alone
    assert thrice - alone == pytest.approx(3 * (once - alone), rel=1e-3)
    assert float(lesson(features=0.0, labels=1.0).gradients(student(), given, 0)) > alone


def test_missing_labels_are_an_error_but_for_extra_data():
    with pytest.raises(DataError, match="no labels"):
        lesson(labels=1.0).gradients(student(), Batch((images(16),)), 0)
    lenient = DistillStep(
        teacher(), PATHS, DistillConfig(labels=1.0), engine(), features=1.0, reading=CLASSES, unlabelled=True
    )
    lenient.gradients(student(), Batch((images(16),)), 0)


@pytest.mark.parametrize("off", [torch.no_grad, torch.enable_grad])
def test_it_is_learned_whatever_the_caller_switched_off(off):
    own = student()
    with off():
        lesson().gradients(own, Batch((images(16),)), 0)
    assert float(own.head.weight.grad.abs().sum()) > 0
