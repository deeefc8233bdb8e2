import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.replace import build_segments
from shoal.replace.post_activation import POST_ACTIVATIONS, post_activation, post_activation_module

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
    return analyze(nn.Sequential(nn.Linear(3, 4), nn.Sequential(Ending(tail))).eval(), Batch((torch.randn(2, 3),)))


@pytest.mark.parametrize("tail", SETTLED)
def test_a_tail_is_made_as_it_was_found(tail):
    assert set(POST_ACTIVATIONS) == set(SETTLED)
    x = torch.linspace(-4, 4, 101)
    assert torch.equal(post_activation_module(tail)(x), SETTLED[tail](x))
    assert post_activation(dissected(SETTLED[tail]), "1.0") == tail


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
    assert post_activation(dissected(tail), "1.0") == found


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
    assert post_activation(dissected(tail), "1.0") is None


def test_pre_activation_blocks_have_none():
    model = networks.randomised(networks.PreactNet(4, 2))
    assert post_activation(analyze(model, Batch((torch.randn(2, 1, 6, 6),))), "blocks.0") == "identity"


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
    line = build_segments(analyze(chain, Batch((torch.randn(2, 3),))))
    assert [step.tail for step in line.segments] == [found, "identity"]
    assert line.is_contiguous == (False, True)
