import copy

import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.blocks.sample_counts import ShapeRuns
from shoal.surgery import certify


class Deciding(nn.Module):
    """Takes another layer where a condition on its input holds."""

    def __init__(self, holds):
        super().__init__()
        self.holds, self.first, self.second = holds, nn.Linear(4, 4), nn.Linear(4, 4)
        self.scale = torch.ones(4)

    def forward(self, x):
        return (self.second if self.holds(x) else self.first)(x) * self.scale


def runs_of(holds):
    return ShapeRuns(Deciding(holds).eval(), Batch((torch.randn(2, 4),)))


@pytest.mark.parametrize(
    "holds",
    [
        lambda x: x.shape[0] > 8,
        lambda x: x.size(0) > 8,
        lambda x: x.size(dim=-2) > 8,
        lambda x: x.size()[0] == 40,
        lambda x: x.numel() > 64,
        lambda x: x.shape[0] % 5 == 4,
        lambda x: 2 * x.shape[0] > 100,
        lambda x: -x.shape[0] < -8,
        lambda x: min(x.shape[0], 9) == 9,
        lambda x: x.shape == (40, 4),
        lambda x: x.shape[0] in (40, 41),
        lambda x: {40: True}.get(x.shape[0], False),
        lambda x: x.t().shape[1] > 8,
        lambda x: x.flatten().shape[0] > 64,
        lambda x: torch.arange(x.shape[0]).shape[0] > 8,
        lambda x: x.shape[0] > x.shape[1],
        lambda x: max(x.shape) > 8,
        lambda x: f"{x.shape[0]}" == "40",
    ],
)
def test_a_decision_by_the_number_of_samples_is_seen(holds):
    assert "by the number of samples" in runs_of(holds).decision()


@pytest.mark.parametrize(
    "holds",
    [
        lambda x: x.shape[0] > 0,
        lambda x: x.shape[0] == 1,
        lambda x: x.shape[0] >= 2,
        lambda x: x.shape[1] > 3,
        lambda x: x.numel() == 0,
        lambda x: x.shape == (x * 2).shape,
        lambda x: x.view(x.shape[0], -1).size(0) != x.size(0),
        lambda x: x.reshape(x.shape[0] * 2, -1).shape[1] == 2,
        lambda x: x.dim() == 2,
    ],
)
def test_what_holds_for_any_number_is_no_decision(holds):
    assert runs_of(holds).decision() is None


@pytest.mark.parametrize(
    "holds",
    [lambda x: len(x) > 8, lambda x: int(x.shape[0]) > 8, lambda x: len(x.unbind()) > 8, lambda x: x.shape[0] / 8 > 1],
)
def test_what_no_comparison_shows_is_seen_by_a_run_with_more_samples(holds):
    net = Deciding(holds).eval()
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.second.bias.add_(1)
    certificate = certify(net, other, [torch.randn(4, 4)])
    assert (certificate.verdict, certificate.bitwise) == ("equal", True)
    assert "33 samples at a time, the computations differ" in certificate.why_not_identical
    assert certify(net, copy.deepcopy(net), [torch.randn(4, 4)]).verdict == "identical"


def test_the_premises_name_the_numbers_tried():
    net = Deciding(lambda x: False).eval()
    premises = certify(net, copy.deepcopy(net), [torch.randn(4, 4)]).premises
    assert "mini-batches of so many samples: 1, 2, 3, 33, 1000" in premises
    net.holds = lambda x: x.view(x.shape[0], 4).expand(2, 4) is None  # of one sample or of two
    premises = certify(net, copy.deepcopy(net), [torch.randn(2, 4)]).premises
    assert "mini-batches of so many samples: 1, 2" in premises


def test_the_network_keeps_its_numbers_and_what_it_has_made():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.made = {}

        def forward(self, x):
            return x + self.made.setdefault(x.shape[0], torch.ones(x.shape[0], 1))

    net = Table()
    runs = ShapeRuns(net, Batch((torch.randn(2, 4),)))
    assert runs.trace(5) is not None
    assert net.made == {}
