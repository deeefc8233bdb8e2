import copy

import pytest
import torch
import torch.nn.functional as F
from test_sites import IMAGES as SINGLE_CHANNEL
from test_sites import Scaled, net
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.epsilon.attach import attach_gates_, gates_of
from shoal.epsilon.prunable import (
    PrunableNetwork,
    PrunableSGD,
    decayed_parameters,
    ending_parameters,
    largest_ending_weight,
)
from shoal.surgery import certify

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LOST = ["layer1.1", "layer2.0"]


def shrinking(seed=0):
    torch.manual_seed(seed)
    model = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 8))).eval()
    anatomy = analyze(model, Batch((IMAGES,)))
    attach_gates_(anatomy, 1.0)
    return PrunableNetwork(anatomy)


def test_a_lost_block_goes_down_to_its_shortcut_and_is_kept_aside():
    one = shrinking()
    total, alive = sum(p.numel() for p in one.model.parameters()), len(one.alive)
    one.remove(LOST)
    assert list(one.removed) == LOST
    assert len(one.alive) == alive - 2
    assert sum(p.numel() for p in one.model.parameters()) < total
    assert one.model(IMAGES).shape == (4, 10)
    assert {gate.block for gate in one.gates()} == set(one.alive)


def test_the_whole_network_with_frozen_gates_is_the_plain_one_by_construction():
    one = shrinking()
    one.remove(LOST)
    whole, plain = one.with_frozen_gates(), one.pruned()
    assert {gate.block for gate in gates_of(whole)} == set(LOST)
    assert gates_of(plain) == []
    assert certify(whole, plain, [IMAGES]).verdict == "identical"
    assert sum(p.numel() for p in whole.parameters()) > sum(p.numel() for p in plain.parameters())


def test_every_block_of_a_stage_may_go():
    one = shrinking()
    one.remove(one.alive)
    assert one.alive == []
    assert certify(one.with_frozen_gates(), one.pruned(), [IMAGES]).verdict == "identical"


def test_copies_share_nothing_with_the_network_in_training():
    one = shrinking()
    one.remove(LOST)
    before = one.model(IMAGES)
    for network in (one.with_frozen_gates(), one.pruned()):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
    assert torch.equal(one.model(IMAGES), before)
    assert any(gate.mode == "live" for gate in one.gates())


def test_what_was_kept_restores_a_fresh_network():
    one, other = shrinking(0), shrinking(1)
    one.remove(LOST)
    other.restore({name: tensor.clone() for name, tensor in one.tensors().items()}, list(one.removed))
    assert torch.equal(other.model(IMAGES), one.model(IMAGES))
    assert torch.equal(other.with_frozen_gates()(IMAGES), one.with_frozen_gates()(IMAGES))
    assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize("taken", [True, False])
def test_modules_of_a_block_are_found_wherever_it_is(taken):
    one = shrinking()
    expected = one.model.layer1[1].conv2
    if taken:
        one.remove(LOST)
    assert one.holder("layer1.1")("layer1.1.conv2") is expected


COLOURS = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def names(model, example):
    anatomy = analyze(model.eval(), Batch((example,)))
    reached = {id(parameter) for parameter in decayed_parameters(anatomy)}
    return {name for name, parameter in model.named_parameters() if id(parameter) in reached}


def test_kernels_decay_and_the_bias_of_the_last_convolution_with_them():
    found = names(networks.PreactNet(width=4, depth=1), SINGLE_CHANNEL)
    assert found == {
        "stem.weight",
        "blocks.0.conv1.weight",
        "blocks.0.conv2.weight",
        "blocks.0.conv2.bias",
        "head.weight",
    }


def test_where_a_norm_ends_the_branch_its_scale_and_shift_decay_too():
    found = names(networks.CifarResNet(1, widths=(4, 8, 8)), COLOURS)
    assert {"layer1.0.bn2.weight", "layer1.0.bn2.bias"} <= found
    assert not {"layer1.0.bn1.weight", "bn1.weight"} & found


def test_a_scale_that_belongs_to_the_block_itself_decays():
    assert "1.0.gamma" in names(net(Scaled(), Scaled()), SINGLE_CHANNEL)


def test_the_branch_is_as_alive_as_its_weakest_last_layer():
    model = networks.CifarResNet(1, widths=(4, 8, 8))
    branch = ("layer1.0.conv1", "layer1.0.bn1", "layer1.0.conv2", "layer1.0.bn2")
    assert len(ending_parameters(model, branch)) == 3
    nn.init.constant_(model.layer1[0].bn2.weight, 0.25)
    nn.init.constant_(model.layer1[0].conv2.weight, 3.0)
    assert largest_ending_weight(model.get_submodule, branch) == 0.25


def starve(reached, steps=55):
    """A post-activation network behind closed gates: its largest last response after decay on `reached` alone."""
    torch.manual_seed(0)
    model = networks.CifarResNet(1, widths=(4, 8, 8))
    anatomy = analyze(model.eval(), Batch((COLOURS,)))
    chosen = reached(anatomy)
    attach_gates_(anatomy, 1e6)
    others = [parameter for parameter in model.parameters() if parameter not in chosen]
    sgd = torch.optim.SGD([{"params": list(chosen), "weight_decay": 0.1}, {"params": others}], lr=0.1, momentum=0.9)
    model.train()
    for _ in range(steps):
        sgd.zero_grad()
        F.cross_entropy(model(COLOURS), torch.tensor([0, 1, 2, 3])).backward()
        sgd.step()
    return max(float(gate.largest) for gate in gates_of(model))


def test_a_branch_that_ends_in_batch_norm_dies_only_if_decay_reaches_scale_and_shift():
    def kernels(anatomy):
        return {parameter for parameter in anatomy.model.parameters() if parameter.dim() >= 2}

    assert starve(decayed_parameters) < 0.2
    assert starve(kernels) > 1, "the norm undoes what decay does to the kernel"
    assert starve(kernels, steps=200) < 1e-3, "until the kernel is small against the norm's own epsilon"


def test_the_model_is_left_as_it_was():
    model = networks.PreactNet(width=4, depth=2).eval()
    before = copy.deepcopy(model.state_dict())
    decayed_parameters(analyze(model, Batch((SINGLE_CHANNEL,))))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


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
    one.drop_stale_params()
    there = set(pair.parameters())
    assert set(one.optimizer.state) == there
    assert {p for group in one.optimizer.param_groups for p in group["params"]} == there


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
    assert set(one.tensors()) == {f"optimizer.momentum_buffer.{name}" for name, _ in pair.named_parameters()}


@pytest.mark.parametrize("missing", [{}, {"momentum.network.0.weight": torch.zeros(3, 3)}])
def test_momentum_that_is_not_there_begins_at_zero(missing):
    pair, fresh = Pair(), Pair()
    one, other = descent(pair), descent(fresh)
    one.load(missing)
    for each, network in ((one, pair), (other, fresh)):
        gradients(network, 0.5)
        each.step(0.1, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(pair.parameters(), fresh.parameters(), strict=True))
    assert torch.equal(one.optimizer.state[pair.side.weight]["momentum_buffer"], torch.full((2, 3), 0.5))
