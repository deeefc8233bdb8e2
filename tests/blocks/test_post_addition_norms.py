import pytest
import torch
import torch.nn.functional as F
from torch import nn

import halves
import networks
from families import POST_NORM, family
from shoal.batches import Batch
from shoal.blocks import analyze


class RMS(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4))

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Block(nn.Module):
    def __init__(self, write, norm):
        super().__init__()
        self.branch, self.norm, self.write = nn.Linear(4, 4), norm, write

    def forward(self, x):
        return self.write(self, x)


class Line(nn.Module):
    def __init__(self, write, norm=RMS):
        super().__init__()
        self.blocks = nn.ModuleList(Block(write, norm()) for _ in range(3))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def without_norms_of(model, *inputs, **named):
    return analyze(model.eval(), Batch(inputs, named)).shortcuts_without_norms


@pytest.mark.parametrize("norm", [RMS, lambda: nn.LayerNorm(4), lambda: nn.BatchNorm1d(4)])
def test_a_norm_behind_the_addition_may_go_too(norm):
    without_norms = without_norms_of(Line(lambda block, x: block.norm(x + block.branch(x)), norm), torch.randn(5, 4))
    assert list(without_norms) == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(isinstance(one, nn.Identity) for one in without_norms.values())


def test_what_follows_the_norm_stays():
    without_norms = without_norms_of(
        Line(lambda block, x: torch.tanh(block.norm(x + block.branch(x)))), torch.randn(5, 4)
    )
    x = torch.randn(2, 4)
    assert torch.equal(without_norms["blocks.0"](x), torch.tanh(x))
    assert not list(without_norms["blocks.0"].parameters())


@pytest.mark.parametrize(
    "write",
    [
        lambda block, x: x + block.branch(block.norm(x)),
        lambda block, x: x + block.norm(block.branch(x)),
        lambda block, x: F.relu(x + block.branch(x)),
        lambda block, x: (lambda y: y + block.norm(y))(x + block.branch(x)),
    ],
)
def test_other_norms_belong_to_branches(write):
    assert without_norms_of(Line(write), torch.randn(5, 4)) == {}
    assert without_norms_of(halves.Halves(), halves.samples()) == {}


def test_layers_of_torch_and_of_transformers():
    torch.manual_seed(0)
    without_norms = without_norms_of(networks.PostNormNet(), torch.randn(3, 5, 8))
    assert list(without_norms) == ["encoder.layers.1", "encoder.layers.2"]  # the container looks into its first layer
    for name in POST_NORM:
        model, inputs, removed = family(name)
        found = without_norms_of(model, **inputs)
        assert set(removed) <= set(found)
        assert not any(list(found[path].parameters()) for path in removed)
