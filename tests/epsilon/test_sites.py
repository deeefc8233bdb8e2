import pytest
import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.epsilon.attach import sites_of

IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A branch that ends in a product with a parameter: no module ends it."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.gamma = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x):
        return x + self.gamma * self.conv(x)


class ReadTwice(nn.Module):
    """A branch that is read by somebody else too."""

    def __init__(self, width=4):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        branch = self.conv(x)
        return torch.relu(x + branch) + 0 * branch.mean()


def net(*blocks):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Sequential(*blocks), nn.Flatten(), nn.Linear(256, 3))


def sites(model, example=IMAGES):
    return sites_of(analyze(model.eval(), Batch((example,))))


def test_the_last_convolution_ends_a_preactivation_branch():
    assert [site.module for site in sites(networks.PreactNet(width=4, depth=2))] == [
        "blocks.0.conv2",
        "blocks.1.conv2",
    ]


def test_the_last_norm_ends_a_postactivation_branch_with_an_in_place_addition():
    found = sites(networks.CifarResNet(1, widths=(4, 8, 8)), torch.randn(2, 3, 8, 8))
    assert [site.module for site in found] == ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]


@pytest.mark.parametrize("block", [Scaled, ReadTwice])
def test_where_no_module_ends_the_branch_alone_the_addition_is_watched(block):
    found = sites(net(block(), block()))
    assert [(site.block, site.unit, site.module) for site in found] == [("1.0", 0, None), ("1.1", 0, None)]


def test_a_module_that_holds_nothing_but_the_branch_is_taken_whole():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))

        def forward(self, x):
            return x + self.body(x)

    assert [site.module for site in sites(net(Inner(), Inner()))] == ["1.0.body", "1.1.body"]
