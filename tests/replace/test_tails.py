import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import dissect
from shoal.replace import line_of
from shoal.replace.tails import TAILS, tail_module, tail_of

SETTLED = {
    "identity": lambda x: x,
    "relu": F.relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "hardswish": F.hardswish,
}


class Ending(nn.Module):
    """A residual block on features with an activation of any kind behind its addition."""

    def __init__(self, tail):
        super().__init__()
        self.fc, self.tail = nn.Linear(4, 4), tail

    def forward(self, x):
        return self.tail(x + self.fc(x))


def dissected(tail):
    torch.manual_seed(0)
    return dissect(nn.Sequential(nn.Linear(3, 4), nn.Sequential(Ending(tail))).eval(), Batch((torch.randn(2, 3),)))


@pytest.mark.parametrize("tail", SETTLED)
def test_a_tail_is_made_as_it_was_found(tail):
    assert set(TAILS) == set(SETTLED)
    x = torch.linspace(-4, 4, 101)
    assert torch.equal(tail_module(tail)(x), SETTLED[tail](x))
    assert tail_of(dissected(SETTLED[tail]), "1.0") == tail


@pytest.mark.parametrize(
    ("tail", "found"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.SiLU(inplace=True), "silu"),
        (nn.GELU("tanh"), "gelu_tanh"),
        (nn.Hardswish(inplace=True), "hardswish"),
        (nn.Identity(), "identity"),
        (nn.Dropout(), "identity"),
        (torch.relu, "relu"),
        (torch.relu_, "relu"),
        (lambda x: x.relu(), "relu"),
    ],
)
def test_modules_methods_and_what_works_in_place(tail, found):
    assert tail_of(dissected(tail), "1.0") == found


@pytest.mark.parametrize(
    "tail",
    [
        torch.tanh,
        nn.ReLU6(),
        nn.LeakyReLU(0.1),
        nn.LayerNorm(4),
        lambda x: 2 * x,
        lambda x: F.relu(x) + 1,
        lambda x: F.relu(F.silu(x)),
        lambda x: F.relu(x + 1),
    ],
)
def test_anything_else_is_no_tail(tail):
    assert tail_of(dissected(tail), "1.0") is None


def test_pre_activation_blocks_have_none():
    model = networks.randomised(networks.PreactNet(4, 2))
    assert tail_of(dissect(model, Batch((torch.randn(2, 1, 6, 6),))), "blocks.0") == "identity"


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ([nn.ReLU(inplace=True)], "relu"),
        ([nn.BatchNorm1d(4), nn.SiLU()], "silu"),
        ([nn.GELU()], "gelu"),
        ([nn.GELU("tanh"), nn.Dropout()], "gelu_tanh"),
        ([nn.Dropout(), nn.Hardswish(inplace=True), nn.Identity()], "hardswish"),
        ([nn.ReLU(), nn.BatchNorm1d(4)], "identity"),
        ([], "identity"),
    ],
)
def test_tails_of_plain_layers(layers, found):
    chain = nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2)).eval()
    line = line_of(dissect(chain, Batch((torch.randn(2, 3),))))
    assert [step.tail for step in line.steps] == [found, "identity"]
    assert line.follows == (False, True)
