import json

import torch
from torch import nn

from shoal.sources.builtin_networks import WEIGHTS, DigitsResNet, digits_resnet
from shoal.sources.data import load_data


def test_shapes():
    model = DigitsResNet(depth=2, widths=(4, 8), classes=3)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
    assert [len(stage) for stage in DigitsResNet().stages] == [9, 9, 9]


def test_every_branch_ends_in_a_convolution_and_only_two_blocks_change_shape():
    blocks = [block for stage in DigitsResNet().stages for block in stage]
    assert list(dict(blocks[0].named_children())) == ["bn1", "conv1", "bn2", "conv2", "shortcut"]
    assert sum(not isinstance(block.shortcut, nn.Identity) for block in blocks) == 2


def test_a_block_whose_last_convolution_is_zero_is_its_shortcut():
    block = DigitsResNet().eval().stages[0][1]
    nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(block(x), x)


def test_the_weights_are_small():
    assert WEIGHTS.stat().st_size < 1_000_000


def test_recorded_accuracy_is_reached():
    record = json.loads(WEIGHTS.with_suffix(".json").read_text())
    model, data = digits_resnet(), load_data("digits")
    assert not model.training
    with torch.no_grad():
        right = torch.cat([model(x).argmax(dim=1) == y for x, y in data.test()])
    assert len(right) == record["test_n"] >= 400
    # One image may fall to the other side on another processor.
    assert abs(right.float().mean().item() - record["test_top1"]) <= 1.01 / len(right)
    assert record["test_top1"] >= 0.98


def test_no_denormal_numbers_that_would_slow_it_down():
    for name, tensor in digits_resnet().state_dict().items():
        if tensor.is_floating_point():
            small = (tensor != 0) & (tensor.abs() < torch.finfo(tensor.dtype).tiny)
            assert not small.any(), name


@torch.no_grad()
def test_at_least_half_of_its_blocks_can_be_left_out():
    model, data = digits_resnet(), load_data("digits")
    blocks = [block for stage in model.stages for block in stage]
    faint = [block for block in blocks if block.conv2.weight.abs().max() < 1e-3]
    before = [model(x).argmax(dim=1) == y for x, y in data.test()]
    for block in faint:
        block.forward = block.shortcut.forward
    after = [model(x).argmax(dim=1) == y for x, y in data.test()]
    assert len(blocks) == 27
    assert len(faint) >= 14
    assert torch.cat(after).float().mean() >= torch.cat(before).float().mean() - 0.01


def test_untrained_on_request():
    torch.manual_seed(0)
    assert not torch.equal(digits_resnet(pretrained=False).head.weight, digits_resnet().head.weight)
