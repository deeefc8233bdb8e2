import pytest
import torch

import networks
from shoal.blocks import trace
from shoal.epsilon.side import SideHead, supervised
from shoal.errors import SurgeryError

IMAGES = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def pair(depth=5, side=True, classes=7):
    model = networks.PreactNet(width=4, depth=depth)
    return supervised(model, trace(model, IMAGES), classes, side=side)


@pytest.mark.parametrize(("depth", "path"), [(5, "blocks.1"), (4, "blocks.1"), (1, "blocks.0")])
def test_it_sits_behind_the_middle_block(depth, path):
    assert pair(depth).path == path


def test_it_answers_in_training_and_is_silent_in_eval():
    one = pair()
    one.attach_hook()
    out, aside = one.train()(IMAGES)
    assert (out.shape, aside.shape) == ((4, 10), (4, 7))
    assert one.eval()(IMAGES)[1] is None


def test_its_gradient_reaches_the_first_half_and_not_the_second():
    one = pair()
    one.attach_hook()
    one.train()(IMAGES)[1].sum().backward()
    assert one.network.blocks[0].conv1.weight.grad is not None
    assert one.network.blocks[4].conv1.weight.grad is None


def test_it_goes_on_listening_where_its_block_was_taken_out():
    one = pair()
    one.attach_hook()
    one.network.blocks[1] = torch.nn.Identity()
    one.attach_hook()
    assert one.train()(IMAGES)[1] is not None
    one.detach_hook()
    assert one(IMAGES)[1] is None
    assert not any(module._forward_hooks for module in one.network.modules())


def test_without_side_supervision_there_is_only_the_network():
    one = pair(side=False)
    one.attach_hook()
    assert (one.side, one.train()(IMAGES)[1]) == (None, None)


def test_tokens_are_pooled_over_their_number():
    head = SideHead((5, 8), 3)
    assert head(torch.randn(2, 5, 8)).shape == (2, 3)
    assert SideHead((8,), 3)(torch.randn(2, 8)).shape == (2, 3)


def test_an_unknown_number_of_classes_is_said():
    with pytest.raises(SurgeryError, match="--no-side"):
        pair(classes=None)
