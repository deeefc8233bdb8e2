import itertools
import random
from collections import defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from shoal.batches import Batch
from shoal.blocks.host_state import HostState
from shoal.blocks.trace import trace_run

COUNTS = {"calls": 0}


class Holder(nn.Module):
    """Runs a function on what it holds."""

    calls = 0

    def __init__(self, held=None, move=None):
        super().__init__()
        self.held, self.move = held, move

    def forward(self, x):
        if self.move is not None:
            self.move(self)
        return x * 2


def count_in_closure():
    calls = 0

    def move(module):
        nonlocal calls
        calls += 1

    return move


def count_in_class(module):
    type(module).calls += 1


def count_in_global(module):
    COUNTS["calls"] += 1


def add_one(module):
    module.held += 1


MOVES = {
    "number": (0, add_one),
    "list": ([], lambda module: module.held.append(1)),
    "nested list": ({"a": ([0],)}, lambda module: module.held["a"][0].append(1)),
    "deque of fixed length": (deque([1, 2], 2), lambda module: module.held.append(module.held[0] + 5)),
    "defaultdict": (defaultdict(int), lambda module: module.held.__setitem__("n", module.held["n"] + 1)),
    "set": (set(), lambda module: module.held.add(len(module.held))),
    "array": (np.zeros(2), add_one),
    "object": (SimpleNamespace(n=0), lambda module: setattr(module.held, "n", module.held.n + 1)),
    "itertools.count": (itertools.count(), lambda module: next(module.held)),
    "itertools.cycle": (itertools.cycle([1, 2, 3]), lambda module: next(module.held)),
    "list iterator": (iter([1, 2, 3, 4]), lambda module: next(module.held)),
    "random.Random": (random.Random(0), lambda module: module.held.random()),
    "numpy Generator": (np.random.default_rng(0), lambda module: module.held.random()),
    "RandomState": (np.random.RandomState(0), lambda module: module.held.rand()),
    "torch.Generator": (torch.Generator(), lambda module: torch.rand(1, generator=module.held)),
    "module outside": ([Holder(0)], lambda module: add_one(module.held[0])),
    "closure": (None, count_in_closure()),
    "class": (None, count_in_class),
    "global": (None, count_in_global),
}


@pytest.mark.parametrize("name", MOVES)
def test_what_moves_is_seen(name):
    held, move = MOVES[name]
    net = nn.Sequential(Holder(), Holder(held, move))
    before = HostState(net)
    assert before.changed(HostState(net)) == []
    net(torch.ones(1))
    assert before.changed(HostState(net))


def test_a_counting_hook_is_seen():
    calls = []
    net = nn.Sequential(nn.ReLU())
    net[0].register_forward_hook(lambda module, args, output: calls.append(1))
    assert trace_run(net, Batch((torch.ones(1, 2),))).written


def test_the_trace_names_it():
    net = nn.Sequential(Holder(), Holder(0, add_one))
    assert trace_run(net, Batch((torch.ones(1, 2),))).written == {"'1.held'"}


@pytest.mark.parametrize("held", [None, float("nan"), [1], {"a": torch.zeros(2)}, iter([1]), object(), len, nn.ReLU()])
def test_what_stands_still_is_not(held):
    assert trace_run(Holder(held), Batch((torch.ones(1, 2),))).written == set()


def test_a_tensor_that_is_kept_is_no_state_of_python():
    net = Holder(torch.zeros(1), lambda module: setattr(module, "held", torch.ones(1)))
    assert trace_run(net, Batch((torch.ones(1, 2),))).written == set()
