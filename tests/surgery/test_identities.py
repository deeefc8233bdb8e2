import pytest
import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.surgery import certify, remove_blocks, strict_identities


def identities(net, x):
    return strict_identities(analyze(net.eval(), Batch((x,))))


def zero(net, *names):
    with torch.no_grad():
        for name in names:
            net.get_parameter(name).zero_()
    return net


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], []),
        (["layer1.1.bn2.weight", "layer1.1.bn2.bias"], ["layer1.1"]),
        (["layer1.1.bn2.weight"], []),
        (["layer1.1.conv2.weight"], []),
        (["layer1.1.bn1.weight", "layer1.1.bn1.bias"], []),
        (["layer2.0.bn2.weight", "layer2.0.bn2.bias"], ["layer2.0"]),
        (
            ["layer1.0.bn2.weight", "layer1.0.bn2.bias", "layer3.1.bn2.weight", "layer3.1.bn2.bias"],
            ["layer1.0", "layer3.1"],
        ),
    ],
)
def test_exactly_the_blocks_with_a_zero_branch_are_found(names, found):
    net = zero(networks.randomised(networks.CifarResNet(2, widths=(4, 8, 12))), *names)
    said = identities(net, torch.randn(2, 3, 8, 8))
    assert list(said) == found
    assert all("is zero" in reason for reason in said.values())


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["blocks.1.conv2.weight", "blocks.1.conv2.bias"], ["blocks.1"]),
        (["blocks.1.conv2.weight"], []),
        (["blocks.1.conv2.bias"], []),
    ],
)
def test_a_last_convolution_must_lose_weight_and_bias(names, found):
    net = zero(networks.randomised(networks.PreactNet()), *names)
    assert list(identities(net, torch.randn(2, 1, 6, 6))) == found


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(4, 4), nn.Linear(4, 4)
        self.gamma1, self.gamma2 = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def forward(self, x):
        x = x + self.gamma1 * self.fc1(x)
        return x + self.fc2(x) * self.gamma2


@pytest.mark.parametrize(
    ("names", "found"),
    [(["1.gamma1"], []), (["1.gamma2"], []), (["1.gamma1", "1.gamma2"], ["1"])],
)
def test_of_two_units_both_must_be_zero(names, found):
    net = zero(nn.Sequential(nn.Linear(4, 4), Scaled(), Scaled()), *names)
    said = identities(net, torch.randn(2, 4))
    assert list(said) == found
    if found:
        assert said["1"] == "'1.gamma1' is zero; '1.gamma2' is zero"


@pytest.mark.slow
def test_in_a_deep_network_they_go_without_a_difference():
    resnet50 = pytest.importorskip("torchvision").models.resnet50
    torch.manual_seed(0)
    net = networks.randomised(resnet50(weights=None))
    dead = ["layer1.1", "layer2.0", "layer3.2", "layer3.5", "layer4.2"]
    zero(net, *(f"{path}.bn3.{part}" for path in dead for part in ("weight", "bias")))
    x = torch.randn(2, 3, 64, 64)
    assert list(identities(net, x)) == dead
    cut = remove_blocks(net, Batch((x,)), dead)
    found = certify(net, cut, [x])
    assert (found.verdict, found.max_abs_diff, found.bitwise) == ("identical", 0.0, True)
    for path in dead:
        assert any(f"'{path}' is zero" in premise for premise in found.premises), path
