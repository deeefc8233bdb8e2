import copy

import pytest
import torch
from torch import nn

from shoal.batches import Batch, as_batch
from shoal.errors import DataError
from shoal.plan import Replace, Replacement
from shoal.recover import DistillConfig
from shoal.recover.train_step import DistillStep, capture_outputs, has_batch_norms, matching_blocks, set_train_mode_
from shoal.recover.trainable import NormedReplacement
from shoal.training.optim import ClippedOptimizer
from teaching import CLASSES, TokenNet, engine, images, same, student, teacher, tokens

PATHS = ["blocks.0", "blocks.3"]


def lesson(features=1.0, **more):
    return DistillStep(
        teacher(), more.pop("paths", PATHS), DistillConfig(**more), engine(), features=features, reading=CLASSES
    )


def test_lessons_bring_the_student_nearer_and_leave_the_teacher_alone():
    one, own = lesson(), student()
    before = copy.deepcopy(one.teacher)
    stepping = ClippedOptimizer(own, "sgd", 0.0, 0.05)
    losses = [float(one.step(own, stepping, Batch((images(32),)), 0, 0.1)) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    assert same(before, one.teacher)


def test_the_same_step_draws_the_same_whatever_came_before():
    def gradient():
        own = student()
        loss = lesson().backward(own, Batch((images(16),)), 5)
        return loss, own.head.weight.grad

    first = gradient()
    torch.rand(13)
    assert all(torch.equal(one, other) for one, other in zip(first, gradient(), strict=True))


def test_features_and_labels_are_parts_of_the_loss():
    given = Batch((images(16),), {}, torch.zeros(16, dtype=torch.long))
    alone = float(lesson(features=0.0).backward(student(), given, 0))
    once, thrice = (float(lesson(features=weight).backward(student(), given, 0)) for weight in (1.0, 3.0))
    assert once > alone
    assert thrice - alone == pytest.approx(3 * (once - alone), rel=1e-3)
    assert float(lesson(features=0.0, labels=1.0).backward(student(), given, 0)) > alone


def test_missing_labels_are_an_error_but_for_extra_data():
    with pytest.raises(DataError, match="no labels"):
        lesson(labels=1.0).backward(student(), Batch((images(16),)), 0)
    lenient = DistillStep(
        teacher(), PATHS, DistillConfig(labels=1.0), engine(), features=1.0, reading=CLASSES, unlabelled=True
    )
    lenient.backward(student(), Batch((images(16),)), 0)


@pytest.mark.parametrize("off", [torch.no_grad, torch.enable_grad])
def test_it_is_learned_whatever_the_caller_switched_off(off):
    own = student()
    with off():
        lesson().backward(own, Batch((images(16),)), 0)
    assert float(own.head.weight.grad.abs().sum()) > 0


def norms(model):
    return {one.training for one in model.modules() if isinstance(one, nn.BatchNorm2d)}


def test_batch_norms_learn_in_large_mini_batches_only():
    model = teacher().train()
    assert norms(set_train_mode_(model, 16, 16)) == {True}
    assert not model.training
    assert norms(set_train_mode_(model, 15, 16)) == {False}


def test_dropout_stays_off():
    model = TokenNet().train()
    assert not any(one.training for one in set_train_mode_(model, 64, 16).modules())


def test_who_has_batch_norms():
    assert has_batch_norms(teacher())
    assert not has_batch_norms(TokenNet())
    assert not has_batch_norms(nn.BatchNorm1d(2, track_running_stats=False))


def test_kept_blocks_are_shared_and_removed_ones_are_not():
    assert matching_blocks(teacher(), student(), Batch((images(2),))) == ["blocks.0", "blocks.3"]


def test_a_block_of_another_shape_is_not_shared():
    cut = student()
    cut.blocks[3] = NormedReplacement(nn.Conv2d(4, 4, 1), nn.Identity(), nn.Identity(), shortcut=True)
    assert matching_blocks(teacher(), cut, Batch((images(2),))) == ["blocks.0"]


def test_a_block_that_is_narrower_inside_is_shared():
    cut = student()
    block = cut.blocks[3]
    block.conv1, block.bn2, block.conv2 = (
        nn.Conv2d(4, 2, 3, padding=1),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 4, 3, padding=1),
    )
    assert matching_blocks(teacher(), cut.eval(), Batch((images(2),))) == ["blocks.0", "blocks.3"]


def test_a_block_that_stands_for_a_span_is_not_held_against_the_one_it_stands_at():
    cut, form = teacher(), {"layout": "channels_first", "in_channels": 4, "out_channels": 4}
    cut.blocks[2] = nn.Identity()
    replaced = [
        Replace(paths=["blocks.1", "blocks.2"], stand_in=Replacement(kind="block", copies=("blocks.1",), **form))
    ]
    assert matching_blocks(teacher(), cut.eval(), Batch((images(2),)), replaced) == ["blocks.0", "blocks.3"]


def test_networks_that_share_nothing_are_compared_by_answers_alone():
    linear = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert matching_blocks(teacher(), linear, Batch((images(2),))) == []


def test_dict_inputs():
    assert matching_blocks(TokenNet().eval(), TokenNet().eval(), as_batch(tokens())) == [
        "layers.0",
        "layers.1",
        "layers.2",
    ]


def test_no_hook_stays_behind_where_something_raises():
    model = teacher()
    try:
        with capture_outputs(model, ["blocks.0"]) as heard:
            model(images(2))
            raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    assert heard["blocks.0"].shape == (2, 4, 8, 8)
    assert not any(one._forward_hooks for one in model.modules())


def test_what_was_heard_survives_a_layer_that_works_in_place():
    model = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    given = torch.tensor([-1.0, 2.0])
    with capture_outputs(model, ["0"]) as heard:
        model(given)
    assert heard["0"].tolist() == [-1.0, 2.0]
