import random

import numpy as np
import pytest
import torch
from torch import nn

import networks
from families import family
from shoal.batches import Batch
from shoal.blocks import analyze, trace
from shoal.blocks.control_flow import RngWatch, seeded
from shoal.errors import SurgeryError
from shoal.surgery import remove_blocks


class Residual(nn.Module):
    def __init__(self, decide=None):
        super().__init__()
        self.work, self.decide = nn.Linear(4, 4), decide

    def forward(self, x):
        if self.decide is not None and not self.decide(x):
            return x
        return x + self.work(x)


class Net(nn.Module):
    """`decide` says whether block 1 is called; with `inside` it is called and decides itself."""

    def __init__(self, decide, *, inside=False):
        super().__init__()
        torch.manual_seed(0)
        self.decide = None if inside else decide
        self.blocks = nn.ModuleList(Residual(decide if inside and number == 1 else None) for number in range(4))

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            if number != 1 or self.decide is None or self.decide(x):
                x = block(x)
        return x


DECISIONS = {
    "value": lambda x: bool(x.mean() > 0),
    "item": lambda x: x.abs().max().item() < 6,
    "torch's random": lambda x: torch.rand(()) < 0.5,
    "Python's random": lambda x: random.random() < 0.5,
    "numpy's random": lambda x: np.random.rand() < 0.5,
}
X = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("decide", DECISIONS.values(), ids=DECISIONS)
def test_a_block_that_is_skipped_at_times_stays(decide, inside):
    with seeded(3):  # a seed with which all of them take the block at first
        chain = trace(Net(decide, inside=inside).eval(), X)
    if "blocks.1" in chain.paths:
        assert not chain["blocks.1"].removable
        assert "it is executed conditionally on the input" in chain["blocks.1"].reason
    assert [path for path in chain.paths if chain[path].removable] == ["blocks.0", "blocks.2", "blocks.3"]


def test_it_is_said_when_it_is_to_be_removed():
    model = Net(DECISIONS["value"]).eval()
    with pytest.raises(SurgeryError, match=r"it was called once, with other input never"):
        remove_blocks(model, Batch((X,)), ["blocks.1"])
    inside = Net(DECISIONS["value"], inside=True).eval()
    with pytest.raises(SurgeryError, match="it made 1 residual addition, with other input 0"):
        remove_blocks(inside, Batch((X,)), ["blocks.1"])


def test_an_early_exit_keeps_what_comes_behind_it():
    class Early(Net):
        def forward(self, x):
            for number, block in enumerate(self.blocks):
                x = block(x)
                if number == 1 and x.abs().max() > 5:
                    break
            return x

    chain = trace(Early(None).eval(), X)
    assert [block.path for block in chain.removable] == ["blocks.0", "blocks.1"]


def test_networks_that_look_at_values_and_decide_alike_lose_nothing():
    model, inputs, _ = family("mistral")
    graph = analyze(model, Batch(kwargs=inputs))
    assert len(graph.chain.removable) == 4

    class Checking(Net):
        def forward(self, x):
            if torch.isnan(x).any():
                raise ValueError("NaN")
            return super().forward(x)

    assert len(trace(Checking(None).eval(), X).removable) == 4


def test_random_states_are_as_before():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(())
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with seeded(5):
        assert random.random() == random.Random(5).random()
        np.random.rand(), torch.rand(3)
    assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_what_draws_is_noticed():
    for draw in (random.random, np.random.rand):
        draws = RngWatch()
        assert not draws.moved
        draw()
        assert draws.moved


def test_a_network_that_decides_nothing_is_run_no_more_often():
    model, calls = networks.PreactNet(4, 2).eval(), []
    model.stem.register_forward_hook(lambda *_: calls.append(1))
    trace(model, torch.randn(2, 1, 8, 8))
    # Once before, once traced, once without its blocks, once with copies of what they return; and on other values, on
    # one sample, on larger, on smaller and on odd sizes with zeros for the branches and without the blocks.
    assert len(calls) == 4 + 5 * 2
