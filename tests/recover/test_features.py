import torch
from lessons import TokenNet, images, student, teacher, tokens
from torch import nn

from shoal.batches import Batch, as_batch
from shoal.plan import Replace, Replacement
from shoal.recover.features import capture_outputs, matching_blocks
from shoal.recover.trainable import NormedStandIn


def test_kept_blocks_are_shared_and_removed_ones_are_not():
    assert matching_blocks(teacher(), student(), Batch((images(2),))) == ["blocks.0", "blocks.3"]


def test_a_block_of_another_shape_is_not_shared():
    cut = student()
    cut.blocks[3] = NormedStandIn(nn.Conv2d(4, 4, 1), nn.Identity(), nn.Identity(), shortcut=True)
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
