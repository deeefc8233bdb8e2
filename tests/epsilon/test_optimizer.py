import copy

import pytest
import torch
from torch import nn

from shoal.epsilon.optimizer import PrunableSGD


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
        self.side = nn.Linear(3, 2)


def descent(pair, nesterov=False):
    return PrunableSGD(pair, {pair.network[0].weight, pair.network[1].weight}, 0.9, nesterov=nesterov)


def gradients(pair, value=0.0):
    for parameter in pair.parameters():
        parameter.grad = torch.full_like(parameter, value)


def test_decay_reaches_what_it_should_and_the_matrices_of_the_side_head():
    pair = Pair()
    before = copy.deepcopy(pair)
    gradients(pair)
    descent(pair).step(0.1, 0.5)
    for name, parameter in pair.named_parameters():
        expected = 0.95 if name in ("network.0.weight", "network.1.weight", "side.weight") else 1.0
        assert torch.allclose(parameter, expected * before.get_parameter(name)), name


def test_two_steps_are_those_of_torch():
    ours, theirs = Pair(), Pair()
    one = PrunableSGD(ours, set(), 0.9, nesterov=True)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for value in (1.0, -0.5):
        gradients(ours, value)
        gradients(theirs, value)
        one.step(0.1, 0.0)
        sgd.step()
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in ours.parameters())


def test_lost_parameters_go_with_their_momentum():
    pair = Pair()
    one = descent(pair)
    gradients(pair, 1.0)
    one.step(0.1, 0.0)
    pair.network[0] = nn.Identity()
    one.forget_missing()
    there = set(pair.parameters())
    assert set(one.sgd.state) == there
    assert {p for group in one.sgd.param_groups for p in group["params"]} == there


def test_momentum_is_kept_by_name_and_loaded_again():
    pair = Pair()
    one = descent(pair)
    gradients(pair, 1.0)
    one.step(0.1, 0.0)
    twin = copy.deepcopy(pair)
    other = descent(twin)
    other.load(one.tensors())
    for each, network in ((one, pair), (other, twin)):
        gradients(network, 0.25)
        each.step(0.1, 0.01)
    assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), twin.parameters(), strict=True))
    assert set(one.tensors()) == {f"momentum.{name}" for name, _ in pair.named_parameters()}


@pytest.mark.parametrize("missing", [{}, {"momentum.network.0.weight": torch.zeros(3, 3)}])
def test_momentum_that_is_not_there_begins_at_zero(missing):
    pair, fresh = Pair(), Pair()
    one, other = descent(pair), descent(fresh)
    one.load(missing)
    for each, network in ((one, pair), (other, fresh)):
        gradients(network, 0.5)
        each.step(0.1, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), fresh.parameters(), strict=True))
    assert torch.equal(one.sgd.state[pair.side.weight]["momentum_buffer"], torch.full((2, 3), 0.5))
