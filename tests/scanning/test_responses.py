import math

import pytest
import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import ModelRaisedError
from shoal.scanning import Response, responses


def of(net, loader):
    return responses(analyze(net.eval(), Batch((loader[0],))), loader)


class Twice(nn.Module):
    """The branch is twice the input."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.fc = nn.Linear(3, 3, bias=False)
        with torch.no_grad():
            self.fc.weight.copy_(factor * torch.eye(3))

    def forward(self, x):
        return x + self.fc(x)


def test_the_figures_are_those_of_all_additions():
    loader = [torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[0.5, 0.0, -4.0], [1.0, 1.0, 1.0]])]
    found = of(nn.Sequential(Twice(2.0), Twice(-3.0)), loader)
    data = torch.cat(loader)
    first, second = found["0"], found["1"]
    assert (first.largest_stream, first.largest_branch, first.count) == (4.0, 8.0, 9)
    assert first.sum_stream == pytest.approx(float(data.abs().sum()))
    assert first.sum_branch == pytest.approx(2 * float(data.abs().sum()))
    assert (second.largest_stream, second.largest_branch) == (12.0, 36.0)
    assert first.ratio == pytest.approx(8.0 / float(data.abs().mean()))


def test_the_ratio_does_not_depend_on_the_scale_of_the_input():
    x = torch.randn(4, 3)
    net = nn.Sequential(Twice(), Twice())
    one, other = of(net, [x])["1"].ratio, of(net, [1000 * x])["1"].ratio
    assert one == pytest.approx(other, rel=1e-5)


def test_a_zero_branch_has_ratio_zero_even_on_a_zero_stream():
    assert of(nn.Sequential(Twice(0.0)), [torch.zeros(2, 3)])["0"].ratio == 0.0
    assert of(nn.Sequential(Twice(0.0)), [torch.ones(2, 3)])["0"].ratio == 0.0
    assert math.isinf(Response(largest_branch=1.0, count=3).ratio)
    assert Response().ratio == 0.0


def test_blocks_of_two_units_count_both_and_siblings_are_left_out():
    found = of(networks.PostNormNet(), [torch.randn(2, 5, 8)])
    assert {one.count for one in found.values()} == {2 * 2 * 5 * 8}
    mobilenet = pytest.importorskip("torchvision").models.mobilenet_v2(weights=None)
    found = of(mobilenet, [torch.randn(1, 3, 32, 32)])
    assert len(found) == 10


def test_what_the_model_raises_is_readable():
    anatomy = analyze(nn.Sequential(Twice()), Batch((torch.ones(1, 3),)))
    with pytest.raises(ModelRaisedError, match=r"shape \(1, 4\)"):
        responses(anatomy, [torch.ones(1, 4)])
