import copy

import pytest
import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import dissect
from shoal.replace import build, line_of, spans_of
from shoal.replace.stand_ins import ShortcutPlus, describe, fill_

LIKE = torch.zeros(1)


@pytest.fixture(scope="module")
def images():
    """Spans of a network on images, by start and stop."""
    anatomy = dissect(networks.CifarResNet(2, widths=(4, 8, 16)).eval(), Batch((torch.randn(2, 3, 8, 8),)))
    return {(one.start, one.stop): one for one in spans_of(anatomy, line_of(anatomy), 6)}


@pytest.fixture(scope="module")
def tokens():
    anatomy = dissect(networks.NumberedNet(8).eval(), Batch((torch.randn(2, 5, 4),)))
    return spans_of(anatomy, line_of(anatomy), 3)[0]


@pytest.mark.parametrize("kind", ["conv1", "conv3", "conv5"])
@pytest.mark.parametrize("place", [(0, 1), (0, 3), (1, 6), (2, 3)])
def test_a_stand_in_returns_what_its_span_returns_in_shape(images, kind, place):
    span = images[place]
    stand_in = describe(span, kind)
    module = build(stand_in, LIKE)
    y = module(torch.randn(2, *span.in_shape))
    assert y.shape == (2, *span.out_shape)
    assert y.min() >= 0
    assert module[0].kernel_size == (int(kind[-1]),) * 2
    assert not module.training


@pytest.mark.parametrize("kind", ["lowrank1", "lowrank3"])
def test_low_rank_goes_through_few_features_beside_the_shortcut(images, kind):
    module = build(describe(images[0, 2], kind, 2), LIKE)
    assert isinstance(module, ShortcutPlus)
    assert module.branch[0].out_channels == module.branch[1].in_channels == 2
    assert module.branch[0].bias is None
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(module(x), torch.relu(x + module.branch(x)))


def test_tokens_get_a_linear_map_and_keep_their_tail(tokens):
    module = build(describe(tokens, "conv1"), LIKE)
    assert isinstance(module[0], nn.Linear)
    assert isinstance(module[1], nn.Identity)
    assert module(torch.randn(2, 5, 8)).shape == (2, 5, 8)
    low = build(describe(tokens, "lowrank1", 3), LIKE)
    assert [tuple(one.shape) for one in low.branch.parameters()] == [(3, 8), (8, 3), (8,)]


def test_a_rank_is_of_low_rank_stand_ins_only(images):
    assert describe(images[0, 2], "conv3", 2).rank is None


@pytest.mark.parametrize(("kind", "rank"), [("conv3", None), ("conv1", None), ("lowrank3", 2)])
def test_the_state_dict_fits_a_stand_in_built_again(images, kind, rank):
    stand_in = describe(images[0, 2], kind, rank)
    one, other = build(stand_in, LIKE), build(type(stand_in).model_validate_json(stand_in.model_dump_json()), LIKE)
    for parameter in one.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize(("kind", "rank"), [("conv3", None), ("lowrank1", 2)])
def test_it_can_be_copied_and_trained(images, kind, rank):
    module = copy.deepcopy(build(describe(images[0, 2], kind, rank), LIKE)).train()
    module(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert all(one.grad is not None and one.grad.abs().sum() > 0 for one in module.parameters())


def test_building_takes_the_dtype_and_moves_no_random_state(images):
    before = torch.get_rng_state()
    module = build(describe(images[0, 2], "conv3"), LIKE.bfloat16())
    assert {one.dtype for one in module.parameters()} == {torch.bfloat16}
    assert torch.equal(torch.get_rng_state(), before)


def test_filling_writes_the_map_in_the_order_of_the_flattened_weight(images):
    stand_in = describe(images[0, 3], "conv3")
    module = build(stand_in, LIKE)
    weight, bias = torch.randn(8, 4, 3, 3), torch.randn(8)
    fill_(module, stand_in, weight.flatten(1).double(), bias.double())
    x = torch.randn(2, 4, 8, 8)
    expected = torch.relu(nn.functional.conv2d(x, weight, bias, stride=2, padding=1))
    torch.testing.assert_close(module(x), expected)


def test_filling_low_rank(images):
    stand_in = describe(images[0, 2], "lowrank3", 2)
    module = build(stand_in, LIKE)
    left, rows, bias = torch.randn(4, 2), torch.randn(2, 36), torch.randn(4)
    fill_(module, stand_in, left, bias, rows)
    x = torch.randn(2, 4, 8, 8)
    residual = nn.functional.conv2d(x, (left @ rows).reshape(4, 4, 3, 3), bias, padding=1)
    torch.testing.assert_close(module(x), torch.relu(x + residual), rtol=1e-4, atol=1e-4)
